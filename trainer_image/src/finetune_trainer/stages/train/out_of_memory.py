"""One reason with measured peaks for a GPU that is out of memory, in every spelling of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from finetune_trainer.errors import Reason, StageError
from finetune_trainer.model.out_of_memory import is_device_out_of_memory
from finetune_trainer.stages.train import memory

if TYPE_CHECKING:
    from finetune_trainer.contract.run_spec import RunSpec

__all__ = ["gpu_out_of_memory", "is_device_out_of_memory"]

_LONGEST_CAUSE = 160


def gpu_out_of_memory(run: RunSpec, error: BaseException) -> StageError:
    """Return the failure of a run whose GPU is out of memory: the planned and the measured sizes, and what was raised."""
    training = run.training
    checkpointing = "with" if training.gradient_checkpointing else "without"
    return StageError(
        Reason.GPU_OUT_OF_MEMORY,
        f"the GPU must hold micro-batches of {training.micro_batch_size} sequences of up to {training.maximum_length} "
        f"tokens, {checkpointing} gradient checkpointing. {memory.describe_full(memory.read())}. "
        "Lower training.microBatchSize or training.maximumLength, or use a larger GPU. "
        f"Found: {describe_cause(error)}",
    )


def describe_cause(error: BaseException) -> str:
    """Return the type and the first line of what was raised, shortened."""
    line = (str(error).strip().splitlines() or [""])[0].strip()
    text = f"{type(error).__name__}: {line}" if line else type(error).__name__
    return text if len(text) <= _LONGEST_CAUSE else f"{text[: _LONGEST_CAUSE - 1]}…"
