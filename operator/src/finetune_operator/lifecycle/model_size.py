"""What is known about the size of a job's model: its shape by formula, its traced memory, or both."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from finetune_operator.api.stages import Stage
from finetune_operator.contract.memory_trace import MemoryTrace
from finetune_operator.sizing.memory.shape import (
    FamilyUnknownError,
    ModelShape,
    ShapeUnknownError,
    Width,
    model_shape,
    width_of,
)
from finetune_operator.status.draft import StatusDraft


@dataclass(frozen=True)
class ModelSize:
    """The size of a model: `shape` is None for one without a formula, and `trace` before PREPARE reports it."""

    shape: ModelShape | None
    trace: MemoryTrace | None
    width: Width | None = None


def model_size(draft: StatusDraft, config: Mapping[str, Any]) -> ModelSize | None:
    """Return the size of the model with this `config`; None if PREPARE may still trace it.

    Raises ShapeUnknownError if the size cannot become known, and ModelRefusedError for a model that the trainer refuses.
    """
    trace = draft.trace
    try:
        return ModelSize(model_shape(config), trace)
    except FamilyUnknownError as error:
        if trace is not None:
            return ModelSize(None, trace, width_of(config))
        if draft.stage is Stage.PREPARE:
            return None
        why = f": {draft.trace_problem}" if draft.trace_problem else ""
        raise ShapeUnknownError(
            f"{error}; PREPARE must trace any other model, but has reported no trace{why}; use the trainer image of this "
            "operator's version, or choose another model"
        ) from error
