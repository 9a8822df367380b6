"""What the workspace keeps about the rungs of a run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from finetune_trainer.contract.run_spec import Rung
from finetune_trainer.contract.train_result import FailedRungResult, ProbeResult
from finetune_trainer.stages.train.ladder import Device, Ladder, this_device
from finetune_trainer.stages.train.rungs import runs_by_rung
from finetune_trainer.workspace.layout import WorkspaceLayout

from tests.support.workspaces import SPEC_HASH, run_spec

if TYPE_CHECKING:
    from pathlib import Path

_SMALL = Device(name="L4", bytes=24)
_LARGE = Device(name="A100", bytes=80)
_LADDER = [{"microBatchSize": 1, "gradientCheckpointing": True}]


def _failed(size: int, *, checkpointing: bool, **more: Any) -> FailedRungResult:
    return FailedRungResult(
        micro_batch_size=size, gradient_checkpointing=checkpointing, activity="Training", step=7, **more
    )


def _sizes(ladder: Ladder, tmp_path: Path, **more: Any) -> list[int]:
    runs = runs_by_rung(run_spec(tmp_path, tmp_path, microBatchSize=4, ladder=_LADDER, **more))
    return [each.training.micro_batch_size for each in ladder.open_runs(runs)]


def test_a_failed_rung_is_not_taken_again_on_the_same_kind_of_device(tmp_path: Path) -> None:
    layout = WorkspaceLayout(tmp_path)
    failed = _failed(4, checkpointing=False)
    Ladder(device=_SMALL).with_failure(failed).save(layout, SPEC_HASH)
    found = Ladder.load(layout, SPEC_HASH, _SMALL)
    assert found.failed == (failed,)
    assert _sizes(found, tmp_path) == [1]
    assert _sizes(Ladder.load(layout, SPEC_HASH, _LARGE), tmp_path) == [4, 1]
    assert _sizes(Ladder.load(layout, "sha256:other", _SMALL), tmp_path) == [4, 1]
    Ladder.forget(layout)
    Ladder.forget(layout)
    assert _sizes(Ladder.load(layout, SPEC_HASH, _SMALL), tmp_path) == [4, 1]


def test_a_rung_that_fails_twice_counts_once(tmp_path: Path) -> None:
    ladder = Ladder(device=_SMALL).with_failure(_failed(4, checkpointing=False))
    ladder = ladder.with_failure(_failed(1, checkpointing=True)).with_failure(_failed(1, checkpointing=True))
    assert len(ladder.failed) == 2
    assert _sizes(ladder, tmp_path) == []


def test_a_rung_with_another_optimizer_is_another_rung(tmp_path: Path) -> None:
    failed = _failed(4, checkpointing=False, optimizer="AdamW")
    ladder = Ladder(device=_SMALL).with_failure(failed)
    assert _sizes(ladder, tmp_path, device="cuda", optimizer="AdamW") == [1]
    assert _sizes(ladder, tmp_path, device="cuda", optimizer="AdamW8Bit") == [4, 1]


def test_a_failure_that_an_earlier_trainer_noted_is_that_of_its_only_optimizer(tmp_path: Path) -> None:
    ladder = Ladder(device=_SMALL).with_failure(_failed(4, checkpointing=False))
    assert _sizes(ladder, tmp_path, device="cuda") == [1]
    assert _sizes(ladder, tmp_path, device="cuda", optimizer="AdamW") == [4, 1]


def test_a_probe_counts_for_its_own_rung_only(tmp_path: Path) -> None:
    layout = WorkspaceLayout(tmp_path)
    rung, other = (Rung(micro_batch_size=size, gradient_checkpointing=True) for size in (1, 2))
    result = ProbeResult(sequence_length=80, allocated_bytes=5, reserved_bytes=6)
    Ladder(device=_SMALL).with_probe(rung, result).save(layout, SPEC_HASH)
    found = Ladder.load(layout, SPEC_HASH, _SMALL)
    assert found.probe_of(rung) == result
    assert found.probe_of(other) is None
    assert Ladder.load(layout, SPEC_HASH, _LARGE).probe_of(rung) is None


def test_a_cpu_has_no_memory_of_its_own() -> None:
    assert this_device("cpu") == Device(name="cpu", bytes=0)
