from __future__ import annotations

import json

from finetune_trainer.contract.exit_codes import ExitCode, exit_code
from finetune_trainer.errors import Reason

from tests.support.repository import ROOT


def test_every_reason_of_the_trainer_has_the_exit_code_of_its_class() -> None:
    listed = json.loads((ROOT / "contract" / "reasons.json").read_text())["job"]
    trainer = {name: entry["class"] for name, entry in listed.items() if "trainer" in entry["source"]}
    assert trainer.keys() == {reason.value for reason in Reason}
    codes = {
        "Permanent": ExitCode.PERMANENT,
        "Retryable": ExitCode.RETRYABLE,
        "Interrupted": ExitCode.INTERRUPTED,
    }
    # A permanent failure with a code of its own.
    assert exit_code(Reason(name := "GpuOutOfMemory")) is ExitCode.GPU_OUT_OF_MEMORY
    assert trainer.pop(name) == "Permanent"
    for name, group in trainer.items():
        assert exit_code(Reason(name)) is codes[group], name
    assert exit_code(None) is ExitCode.SUCCEEDED
