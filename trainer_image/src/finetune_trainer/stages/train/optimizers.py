"""The optimizer of a rung, and how a run keeps that of its checkpoints.

All three are AdamW. They differ in the form of the two moments that each trained parameter has: float32, or 8 bits with
a scale for every 256 (Dettmers et al., 2022). Moments in 8 bits can be paged: then CUDA moves them to host memory while
the GPU is full. A paged optimizer and one that is not compute the same and save the same.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from finetune_trainer.contract.run_spec import Optimizer
from finetune_trainer.stages.train.checkpoints import begun_run
from finetune_trainer.stages.train.origin import origin_of
from finetune_trainer.stages.train.rungs import rung_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from finetune_trainer.contract.run_spec import Rung, RunSpec
    from finetune_trainer.workspace.layout import WorkspaceLayout


def begun_optimizer(run: RunSpec, workspace: WorkspaceLayout) -> Optimizer | None:
    """Return the optimizer with which the run has begun; None without a checkpoint of it, and on a CPU.

    A checkpoint does not say if its moments in 8 bits were paged, and need not.
    """
    if run.device == "cpu":
        return None
    forms: tuple[Optimizer, ...] = ("AdamW8Bit", "AdamW")
    origins = [origin_of(with_optimizer(run, optimizer), workspace) for optimizer in forms]
    found = begun_run(workspace.checkpoints, origins)
    return None if found is None else forms[origins.index(found)]


def continued(runs: Sequence[RunSpec], begun: Optimizer | None) -> tuple[RunSpec, ...]:
    """Return the run specs of rungs, each rung once, with moments in the form of those of `begun`.

    The moments of the other form cannot be made from them exactly. `begun` is None if there are none yet.
    """
    found: dict[Rung, RunSpec] = {}
    for run in runs:
        kept = (
            run
            if begun is None or _same_states(run.training.optimizer, begun)
            else with_optimizer(run, begun)
        )
        found.setdefault(rung_of(kept), kept)
    return tuple(found.values())


def with_optimizer(run: RunSpec, optimizer: Optimizer) -> RunSpec:
    """Return `run` with another optimizer."""
    return run.model_copy(update={"training": run.training.model_copy(update={"optimizer": optimizer})})


def _same_states(one: Optimizer | None, other: Optimizer) -> bool:
    return (one == "AdamW") == (other == "AdamW")
