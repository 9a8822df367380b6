"""Memory of the trained tensors: adapter, gradients and optimizer states."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from finetune_operator.sizing.memory.terms import MemoryItem, allocated, blocks

if TYPE_CHECKING:
    from collections.abc import Iterator

    from finetune_operator.sizing.memory.shape import Linear, ModelShape
    from finetune_operator.sizing.memory.stack import StackOptimizer, StackProfile
    from finetune_operator.sizing.memory.training_plan import TrainingPlan

# bitsandbytes/optim: tensors below 4,096 elements keep float32 states; 256 8-bit states share a scale.
_SMALLEST_8BIT = 4096
_STATES_IN_BLOCK = 256


@dataclass(frozen=True)
class Trained:
    """The trained tensors, as pairs of elements and number of tensors of that size."""

    tensors: tuple[tuple[int, int], ...]
    width: int
    """Bytes of one element."""

    @property
    def parameters(self) -> int:
        """Elements of all tensors."""
        return sum(elements * count for elements, count in self.tensors)

    @property
    def bytes(self) -> int:
        """Bytes of one copy of all tensors: the values, or the gradients."""
        return sum(allocated(elements * self.width) * count for elements, count in self.tensors)


def is_adapted(linear: Linear, plan: TrainingPlan) -> bool:
    """Return whether a matrix gets an adapter."""
    return plan.target_modules == "AllLinear" or linear.in_attention


def trained_tensors(shape: ModelShape, plan: TrainingPlan, stack: StackProfile) -> Trained:
    """Return the trained tensors: two factors for each adapted matrix (Hu et al., 2021), and DoRA's magnitudes."""
    return Trained(tuple(_lora(shape, plan)), stack.adapter_width)


def _lora(shape: ModelShape, plan: TrainingPlan) -> Iterator[tuple[int, int]]:
    for count, linear in shape.matrices:
        if not is_adapted(linear, plan):
            continue
        yield plan.rank * linear.inputs, count
        yield plan.rank * linear.outputs, count
        if plan.variant == "DoRA":
            yield linear.outputs, count


def bucket_items(trained: Trained, plan: TrainingPlan) -> tuple[MemoryItem, ...]:
    """Return the buckets in which DDP adds the gradients of several ranks. They last as long as the training.

    After the last pass of a step, the gradients are views of them. Buffers of NCCL are not part of it.
    """
    if plan.ranks == 1:
        return ()
    buckets = allocated(trained.parameters * trained.width)
    return (
        MemoryItem(
            "gradient buckets", buckets, f"of {trained.parameters} parameters, for {plan.ranks} ranks"
        ),
    )


def optimizer_item(trained: Trained, optimizer: StackOptimizer) -> MemoryItem:
    """Return the states of `optimizer`.

    Paged states count too: CUDA moves them to host memory if the device is full, but a step uses them on the device.
    """
    states = sum(_states(elements, trained.width, optimizer) * count for elements, count in trained.tensors)
    return MemoryItem("optimizer states", states, f"{optimizer} of {trained.parameters} parameters")


def _states(elements: int, width: int, optimizer: StackOptimizer) -> int:
    """Return the bytes of one tensor's states."""
    match optimizer:
        case "Sgd":
            return 0
        case "AdamW":
            # torch's fused AdamW keeps the number of steps on the device.
            return 2 * allocated(elements * width) + allocated(4)
        case "AdamW8Bit" | "PagedAdamW8Bit" if elements >= _SMALLEST_8BIT:
            return 2 * (allocated(elements) + allocated(4 * blocks(elements, _STATES_IN_BLOCK)))
        case _:
            return 2 * allocated(4 * elements)
