"""Which weights of the base a job merges its adapter into."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from finetune_trainer.contract.run_spec import RunSpec


def merges_onto_original(run: RunSpec) -> bool:
    """Return whether the run merges into the base's own 16-bit weights, which PREPARE must then keep."""
    return "Merged" in run.output.artifacts and run.output.merge_onto == "OriginalWeights"
