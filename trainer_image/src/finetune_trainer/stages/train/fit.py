"""Runs TRAIN on the first rung that fits: an out-of-memory error of the GPU takes the next rung in the same process."""

from __future__ import annotations

import logging
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

from finetune_trainer.contract.train_result import FailedRungResult
from finetune_trainer.stages.train import memory
from finetune_trainer.stages.train.ladder import Ladder
from finetune_trainer.stages.train.optimizers import continued
from finetune_trainer.stages.train.out_of_memory import describe_cause, is_device_out_of_memory
from finetune_trainer.stages.train.ranks.group import ALONE, RankDoesNotFitError
from finetune_trainer.stages.train.rungs import (
    describe_failure,
    describe_rung,
    ladder_used_up,
    rung_members,
    rung_of,
    runs_by_rung,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from finetune_trainer.contract.run_spec import Optimizer, Rung, RunSpec
    from finetune_trainer.stages.train.ladder import Device
    from finetune_trainer.stages.train.memory import Reading
    from finetune_trainer.stages.train.ranks.group import Ranks
    from finetune_trainer.workspace.layout import WorkspaceLayout

_log = logging.getLogger(__name__)
_T = TypeVar("_T")


class DoesNotFitError(Exception):
    """The GPU is out of memory in an activity that needs less on a more frugal rung."""

    def __init__(self, activity: str, step: int | None, reading: Reading | None, cause: str) -> None:
        super().__init__(cause)
        self.activity = activity
        self.step = step
        self.reading = reading
        self.cause = cause

    def of_rung(self, rung: Rung) -> FailedRungResult:
        """Return the failure of `rung` for the result."""
        known: dict[str, int] = {} if self.step is None else {"step": self.step}
        if self.reading is not None:
            known["allocated_bytes"] = self.reading.allocated_peak
            known["reserved_bytes"] = self.reading.reserved_peak
        return FailedRungResult(**rung_members(rung), activity=self.activity, **known)


@contextmanager
def fitting(activity: str, step: Callable[[], int] | None = None) -> Iterator[None]:
    """Turn an out-of-memory error of the GPU into DoesNotFitError with the measured peaks.

    `step` tells the training step that was running.
    """
    try:
        yield
    except Exception as error:
        if not is_device_out_of_memory(error):
            raise
        raise DoesNotFitError(
            activity, None if step is None else step(), memory.read(), describe_cause(error)
        ) from error


def fit(
    run: RunSpec,
    workspace: WorkspaceLayout,
    device: Device,
    attempt: Callable[[RunSpec, Ladder, bool], _T],
    begun: Callable[[], Optimizer | None],
    ranks: Ranks = ALONE,
) -> _T:
    """Return what `attempt` returns on the first rung that fits.

    `attempt` gets the run spec of a rung, what is known about the rungs, and whether this rung is the last. It raises
    DoesNotFitError, and every new attempt builds everything again: nothing of a failed one is left in memory. `begun`
    returns the optimizer of the run's checkpoints, None without one: its states stay as they are. Raises
    StageError(GpuOutOfMemory) with the peaks of every rung if none fits. Several `ranks` must take the same rung, so a rung
    that does not fit raises RankDoesNotFitError, and the next launch goes on.
    """
    ladder = Ladder.load(workspace, run.spec_hash, device)
    runs = continued(runs_by_rung(run), begun())
    left = ladder.open_runs(runs)
    if not left:
        ladder, left = Ladder(device=device), runs
    cause = ""
    while left:
        of_rung, *later = left
        rung = rung_of(of_rung)
        memory.reset_peaks()
        try:
            return attempt(of_rung, ladder, _is_last(rung, later, ladder))
        except DoesNotFitError as error:
            failed, cause = error.of_rung(rung), error.cause
        # The error is gone, and with it the frames that held model, gradients and optimizer.
        memory.release()
        ladder = ladder.with_failure(failed)
        ladder.save(workspace, run.spec_hash)
        left = ladder.open_runs(continued(later, begun()))
        if left and ranks.size > 1:
            raise RankDoesNotFitError(f"{describe_failure(failed)}: {cause}")
        if left:
            _log.warning(
                "the GPU is out of memory: %s; continuing with %s",
                describe_failure(failed),
                describe_rung(rung_of(left[0])),
            )
    # Another run of the same job tries every rung again, because other processes may have held the memory.
    Ladder.forget(workspace)
    raise ladder_used_up(ladder.failed, run.training.maximum_length, device.bytes or None, cause)


def _is_last(rung: Rung, later: Sequence[RunSpec], ladder: Ladder) -> bool:
    """Return whether no rung is left once `rung` has saved a checkpoint, which binds the form of the moments."""
    left = ladder.open_runs(continued(later, rung.optimizer))
    return all(rung_of(run) == rung for run in left)


def measure_within(measure: Callable[[int], _T], sizes: Sequence[int]) -> _T:
    """Return `measure(tokens)` with the first of the batch `sizes` in tokens that fits into the memory."""
    for tokens in sizes[:-1]:
        try:
            return measure(tokens)
        except Exception as error:
            if not is_device_out_of_memory(error):
                raise
        memory.release()
        _log.warning(
            "the GPU is out of memory with batches of %d tokens; measuring with smaller ones", tokens
        )
    return measure(sizes[-1])
