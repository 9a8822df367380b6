"""The rungs of a run: their order, their run specs, and the texts about them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from finetune_trainer.contract.bounds import MAXIMUM_MESSAGE
from finetune_trainer.contract.exit_codes import ExitCode, exit_code
from finetune_trainer.contract.train_result import FailedRungResult
from finetune_trainer.errors import Reason
from finetune_trainer.stages.train.rungs import (
    describe_failure,
    describe_rung,
    ladder_used_up,
    rung_of,
    rung_result,
    runs_by_rung,
    smaller_batches,
)

from tests.support.workspaces import run_spec

if TYPE_CHECKING:
    from pathlib import Path

_GIB = 1 << 30


def _rung(size: int, *, checkpointing: bool) -> dict[str, object]:
    return {"microBatchSize": size, "gradientCheckpointing": checkpointing}


def test_the_planned_rung_comes_before_the_ladder_and_each_rung_comes_once(tmp_path: Path) -> None:
    ladder = [_rung(size, checkpointing=yes) for size, yes in ((4, False), (2, False), (2, True), (2, False))]
    run = run_spec(tmp_path, tmp_path, microBatchSize=4, ladder=ladder)
    runs = runs_by_rung(run)
    found = [(each.training.micro_batch_size, each.training.gradient_checkpointing) for each in runs]
    assert found == [(4, False), (2, False), (2, True)]
    assert [each.training.gradient_accumulation_steps for each in runs] == [1, 2, 2]
    for each in runs:
        assert each.training.effective_batch_size == 4
        assert each.training.ladder == ()
        assert each.spec_hash == run.spec_hash
    assert rung_of(runs[2]) == run.training.ladder[2]
    assert rung_result(rung_of(runs[2])).document() == _rung(2, checkpointing=True)


def test_a_rung_names_its_optimizer_on_a_gpu_and_not_on_a_cpu(tmp_path: Path) -> None:
    """A rung without one is that of an earlier operator. The default comes in at the rung, so none comes twice."""
    ladder = [
        {**_rung(4, checkpointing=False), "optimizer": "PagedAdamW8Bit"},
        {**_rung(2, checkpointing=True), "optimizer": "AdamW8Bit"},
    ]
    on_gpu = runs_by_rung(run_spec(tmp_path, tmp_path, device="cuda", microBatchSize=4, ladder=ladder))
    assert [each.training.optimizer for each in on_gpu] == ["PagedAdamW8Bit", "AdamW8Bit"]
    assert rung_result(rung_of(on_gpu[1])).document() == ladder[1]
    assert describe_rung(rung_of(on_gpu[0])) == (
        "micro-batches of 4 with PagedAdamW8Bit, without gradient checkpointing"
    )
    assert describe_rung(rung_of(on_gpu[1])) == (
        "micro-batches of 2 with AdamW8Bit, with gradient checkpointing"
    )
    on_cpu = runs_by_rung(run_spec(tmp_path, tmp_path, microBatchSize=4, optimizer="AdamW", ladder=ladder))
    assert [rung_of(each).optimizer for each in on_cpu] == [None, None]
    assert rung_result(rung_of(on_cpu[1])).document() == _rung(2, checkpointing=True)


def test_a_rung_names_dequantized_weights_and_no_packed_ones(tmp_path: Path) -> None:
    ladder = [{**_rung(2, checkpointing=True), "weights": "Quantized"}]
    run = run_spec(tmp_path, tmp_path, weights="Dequantized", ladder=ladder)
    first, second = runs_by_rung(run)
    assert (first.training.weights, second.training.weights) == ("Dequantized", "Quantized")
    assert rung_result(rung_of(first)).document() == {
        **_rung(2, checkpointing=False),
        "weights": "Dequantized",
    }
    assert rung_result(rung_of(second)).document() == _rung(2, checkpointing=True)
    assert describe_rung(rung_of(first)) == (
        "micro-batches of 2 with dequantized weights, without gradient checkpointing"
    )


def test_a_rung_that_does_not_divide_the_effective_batch_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="must divide effectiveBatchSize, found 3 and 4"):
        run_spec(tmp_path, tmp_path, ladder=[_rung(3, checkpointing=True)])


def test_a_used_up_ladder_names_the_peaks_of_every_rung_and_has_its_own_exit_code() -> None:
    failed = [
        FailedRungResult(
            micro_batch_size=4,
            gradient_checkpointing=False,
            activity="Training",
            step=7,
            allocated_bytes=20 * _GIB,
            reserved_bytes=22 * _GIB,
        ),
        FailedRungResult(micro_batch_size=2, gradient_checkpointing=True, activity="ProbingMemory"),
    ]
    error = ladder_used_up(failed, 512, 24 * _GIB, "OutOfMemoryError: tried to allocate")
    assert error.reason is Reason.GPU_OUT_OF_MEMORY
    assert "the GPU of 24.00 GiB must hold a step with rows of up to 512 tokens" in error.message
    first = "micro-batches of 4 without gradient checkpointing (Training, step 7: tensors 20.00 GiB, allocator 22.00 GiB)"
    assert first == describe_failure(failed[0])
    assert first in error.message
    assert "micro-batches of 2 with gradient checkpointing (ProbingMemory: not measured)" in error.message
    assert "Last error: OutOfMemoryError: tried to allocate" in error.message
    assert exit_code(error.reason) is ExitCode.GPU_OUT_OF_MEMORY
    assert exit_code(error.reason) == 71


def test_the_remedy_stands_before_a_list_that_may_be_cut() -> None:
    failed = [
        FailedRungResult(
            micro_batch_size=size,
            gradient_checkpointing=True,
            activity="ProbingMemory",
            allocated_bytes=20 * _GIB,
            reserved_bytes=22 * _GIB,
        )
        for size in range(1, 17)
    ]
    message = ladder_used_up(failed, 512, None, "").message
    assert len(message) > MAXIMUM_MESSAGE
    assert message.index("or use a larger GPU") < 300


def test_smaller_batches_end_with_the_longest_row() -> None:
    assert smaller_batches(1000, 300) == (1000, 500, 300)
    assert smaller_batches(1000, 250) == (1000, 500, 250)
    assert smaller_batches(200, 300) == (200,)
