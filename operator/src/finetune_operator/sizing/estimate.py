"""How much GPU memory a run needs, term by term (facts/gpu_memory.md has the derivation). ESTIMATE owns this file."""

from __future__ import annotations

from finetune_operator.sizing.shape import ModelShape
from finetune_operator.sizing.stack import StackProfile
from finetune_operator.sizing.terms import Estimate
from finetune_operator.sizing.training_plan import TrainingPlan


def estimate(shape: ModelShape, plan: TrainingPlan, stack: StackProfile) -> Estimate:
    """Estimate the memory of one run."""
    raise NotImplementedError
