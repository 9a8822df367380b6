"""What PREPARE makes of a trial: refusals with the layer, and warnings."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from finetune_trainer.errors import Reason, StageError
from finetune_trainer.stages.prepare import model_proof
from finetune_trainer.stages.prepare.model_proof import Findings, require_provable
from finetune_trainer.stages.prepare.stage import prepare
from finetune_trainer.telemetry.reporter import NullReporter

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from finetune_trainer.contract.run_spec import RunSpec


@pytest.mark.parametrize("canary", ["training", "merge", "checkpointing"])
def test_a_model_that_would_be_trained_or_merged_wrong_is_refused(canary: str) -> None:
    with pytest.raises(StageError, match="found a difference in layers") as caught:
        require_provable(Findings(**{canary: "found a difference in layers.3"}))
    assert caught.value.reason is Reason.MODEL_UNPROVABLE


@pytest.mark.parametrize(("canary", "text"), [("packing", "will pad"), ("untried", "could not be tried")])
def test_other_findings_are_warnings(canary: str, text: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("WARNING", logger=model_proof.__name__):
        require_provable(Findings(**{canary: "rows see each other in layers.0"}))
    assert text in caplog.text
    assert "layers.0" in caplog.text


def test_a_model_is_tried_before_its_weights_are_read(
    make_run: Callable[..., RunSpec], tmp_path: Path
) -> None:
    tried: list[Any] = []

    def refuse(folder: Path) -> Findings:
        tried.append((folder / "config.json").is_file())
        return Findings(merge="found a difference in layers.3")

    with pytest.raises(StageError) as caught:
        prepare(make_run(), NullReporter(), refuse)
    assert caught.value.reason is Reason.MODEL_UNPROVABLE
    assert tried == [True]
    assert not (tmp_path / "workspace" / "model").exists()
    assert not (tmp_path / "workspace" / "dataset").exists()
