"""Which weights of the base a job merges its adapter into, and which it needs for that."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from finetune_trainer.contract.run_spec import RunSpec


def merges_onto_original(run: RunSpec) -> bool:
    """Return whether the run merges into the base's own 16-bit weights."""
    return "Merged" in run.output.artifacts and run.output.merge_onto == "OriginalWeights"


def keeps_original(run: RunSpec) -> bool:
    """Return whether PREPARE must keep the base's own weights in the workspace.

    A job that publishes the base as trained also tells what the adapter loses on the original base.
    """
    return merges_onto_original(run) or "BaseAsTrained" in run.output.artifacts
