"""Memory of a model's layers during a step: tensors saved by all layers, and the peak of the running layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from finetune_operator.sizing.memory.layer import layer_backward, layer_forward
from finetune_operator.sizing.memory.layer_sizes import LayerSizes, beyond_window, is_eager, layer_sizes
from finetune_operator.sizing.memory.meter import Kind, Meter
from finetune_operator.sizing.memory.terms import MemoryItem, allocated

if TYPE_CHECKING:
    from finetune_operator.sizing.memory.shape import ModelShape
    from finetune_operator.sizing.memory.stack import StackProfile
    from finetune_operator.sizing.memory.training_plan import TrainingPlan

_KIND_NAMES = {
    Kind.SAVED: ("one layer's activations", "saved for its backward pass"),
    Kind.TEMPORARY: ("temporary results and gradients", "of one layer, at its peak"),
    Kind.UNPACKED: ("unpacked matrix", "2 B for each weight, 4 B for each block"),
    Kind.SCORES: ("attention scores", "of one layer, at its peak"),
}


@dataclass(frozen=True)
class LayerMemory:
    """Memory of one kind of layer in bytes: saved for its backward pass, and at its peak while it runs."""

    saved: int
    scores: int
    forward: tuple[int, ...]
    """By Kind, at the peak of a forward pass that is part of a step."""
    inference: tuple[int, ...]
    """By Kind, at the peak of a forward pass without gradients."""
    backward: tuple[int, ...]
    """By Kind, at the peak of the backward pass, and of the repeated forward pass if there is one."""
    kernel_workspace: int
    """Bytes that workspaces inside attention kernels add to the peak of the backward pass."""

    @property
    def all_saved(self) -> int:
        """All saved bytes, attention scores included."""
        return self.saved + self.scores


def layer_memory(layer: LayerSizes, *, again: bool) -> LayerMemory:
    """Run a layer on meters; with `again`, the backward pass repeats the forward pass (checkpointing)."""
    inference = Meter()
    layer_forward(inference, layer, saving=False)
    forward = Meter()
    waiting = 0
    if again:
        # During the repeated forward pass, two tensors wait: the gradient of the layer's output, and its product with
        # the adapter's scale or a norm's weight. The backward pass computes the product before it needs a saved tensor.
        scaled = layer.mlp_out.adapted or layer.shape.norm_places != "Pre" or layer.shape.dropouts.mlp
        # With DoRA, its float32 copy and the product of the copy with the magnitudes.
        waiting = (4 if layer.mlp_out.magnitudes else 1) * layer.hidden if scaled else 0
        forward.alloc(layer.hidden + waiting)
    layer_forward(forward, layer, saving=True)
    forward.free(layer.hidden + waiting)
    saved, scores = forward.now[Kind.SAVED], forward.now[Kind.SCORES]
    backward = forward
    if not again:
        backward = Meter()
        backward.alloc(saved, Kind.SAVED)
        backward.alloc(scores, Kind.SCORES)
        backward.alloc(layer.hidden)
    layer_backward(backward, layer)
    return LayerMemory(
        saved=saved,
        scores=scores,
        forward=inference.at_peak if again else forward.at_peak,
        inference=inference.at_peak,
        backward=backward.at_peak,
        kernel_workspace=backward.kernel_workspace,
    )


def layer_memories(
    shape: ModelShape, plan: TrainingPlan, stack: StackProfile
) -> tuple[tuple[int, LayerMemory], ...]:
    """Return the number of layers of each kind, with the memory of one: full attention, sliding window, convolution."""
    again = plan.gradient_checkpointing
    counts = (
        (shape.attention_layers - shape.sliding_layers, False, False),
        (shape.sliding_layers, True, False),
        (shape.convolution_layers, False, True),
    )
    return tuple(
        (
            count,
            layer_memory(
                layer_sizes(shape, plan, stack, windowed=windowed, convolution=convolution), again=again
            ),
        )
        for count, windowed, convolution in counts
        if count
    )


def waiting_item(
    layers: tuple[tuple[int, LayerMemory], ...],
    shape: ModelShape,
    plan: TrainingPlan,
    stack: StackProfile,
    *,
    last: bool,
) -> MemoryItem:
    """Return the memory that waits for the backward pass outside the running layer.

    With checkpointing these are layer inputs, otherwise the saved tensors of the other layers. With `last`, the last
    layer runs and all others wait. Without it, the first layer runs and no other waits.
    """
    hidden = stack.residual_width * shape.hidden * plan.tokens
    if plan.gradient_checkpointing:
        count = shape.layers if last else 1
        if stack.checkpointing == "PerLayerOffloaded":
            # One in use and one on its way to the host or back.
            count = min(count, 2)
        return MemoryItem(
            "layer inputs", count * allocated(hidden), f"{count} x {shape.hidden} wide x {plan.tokens} tokens"
        )
    total = (
        sum(count * one.all_saved for count, one in layers) - max(one.all_saved for _, one in layers)
        if last
        else 0
    )
    return MemoryItem("activations of other layers", total, f"{shape.layers - 1} layers")


def peak_items(peak: tuple[int, ...]) -> tuple[MemoryItem, ...]:
    """Return the items of a running layer, by kind."""
    return tuple(MemoryItem(*_named(kind, size)) for kind, size in zip(Kind, peak, strict=True) if size)


def _named(kind: Kind, size: int) -> tuple[str, int, str]:
    name, formula = _KIND_NAMES[kind]
    return name, size, formula


def batch_item(shape: ModelShape, plan: TrainingPlan, stack: StackProfile) -> MemoryItem:
    """Return token ids, targets and positions, rotary tables, and attention masks that all layers share."""
    tokens, pairs = plan.tokens, plan.micro_batch_size * plan.sequence_length**2
    size = 3 * 8 * tokens * plan.gradient_accumulation
    if (shape.scaled_residual or shape.dropouts.embedding) and plan.gradient_checkpointing:
        # Embeddings before their multiplication or dropout, which checkpointing makes a leaf of the graph.
        size += stack.residual_width * shape.hidden * tokens
    if shape.dropouts.embedding:
        size += shape.hidden * tokens
    # Cosines and sines of the positions: those of one row, or of all rows if they are packed.
    size += 2 * stack.residual_width * shape.head_dim * tokens
    if is_eager(shape, stack):
        kinds = (shape.attention_layers > shape.sliding_layers) + (shape.sliding_layers > 0)
        size += kinds * stack.residual_width * pairs
    elif stack.attention == "SdpaMasked" or beyond_window(shape, plan):
        size += pairs
    return MemoryItem("batch, positions and masks", size, f"{tokens} tokens")
