"""Memory of frozen weights that ranks share: the part that each keeps, and what it gathers for a moment.

The trainer shares matrices and the constants of their blocks, embeddings and output head with PyTorch's FSDP2, and keeps
vectors and the adapter whole (ADR 0075). FSDP2 gathers into one buffer, and copies from there into the parameters. It keeps
the buffer of a layer until the next one is gathered, and in the backward pass it gathers the next layer early
(torch/distributed/fsdp/_fully_shard/_fsdp_param_group.py). So two copies exist while a layer runs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from finetune_operator.sizing.memory.terms import MemoryItem, allocated
from finetune_operator.sizing.memory.weights import matrix_parts

if TYPE_CHECKING:
    from collections.abc import Iterable

    from finetune_operator.sizing.memory.shape import Linear, ModelShape
    from finetune_operator.sizing.memory.stack import StackProfile

_COPIES = 2
"""Of a gathered group of weights: the buffer of the exchange, and the parameters."""


@dataclass(frozen=True)
class Gathered:
    """The bytes of the groups of weights that a rank gathers: the largest layer, the embedding, and the output head.

    A tied head is one group with the embedding, which stays from the first token of a pass to its loss. `layers` is their
    number. All are zero for a replica.
    """

    layer: int = 0
    embedding: int = 0
    head: int = 0
    tied: bool = False
    layers: int = 1

    @property
    def beginning(self) -> MemoryItem:
        """At the embedding of a pass."""
        return _item(_COPIES * self.embedding + (self.layer if self.tied else 0), "embedding")

    @property
    def running(self) -> MemoryItem:
        """While a layer runs forward."""
        return _item(_COPIES * self.layer + (self.embedding if self.tied else 0), "one layer")

    @property
    def at_head(self) -> MemoryItem:
        """When the output head has just been gathered."""
        return _item(self.embedding if self.tied else _COPIES * self.head, "output head")

    @property
    def projecting(self) -> MemoryItem:
        """While logits are computed."""
        return _item(self.embedding if self.tied else self.head, "output head")

    @property
    def answering(self) -> MemoryItem:
        """At the embedding of a token of an answer. The head stays until the last token."""
        return _item(self.beginning.bytes + (0 if self.tied else self.head), "embedding and output head")

    @property
    def last_backward(self) -> MemoryItem:
        """While the last layer runs backward, with the buffer of the layer before."""
        return _item(min(_COPIES, self.layers) * self.layer, "one layer and the next")

    @property
    def first_backward(self) -> MemoryItem:
        """While the first layer runs backward. No embedding is gathered for a backward pass."""
        return _item(self.layer, "one layer")


REPLICA = Gathered()


def own_weight_items(
    shape: ModelShape, stack: StackProfile, ranks: int, *, dequantized: bool
) -> tuple[MemoryItem, ...]:
    """Return the items of the loaded model on one of several ranks. `stack` is that of the packed weights.

    Of `dequantized` matrices, no constants of single blocks remain.
    """
    layers = constants = 0
    for count, linear in shape.matrices:
        values, blocks, whole = matrix_parts(linear.weights, linear.outputs, stack)
        if dequantized:
            values, blocks = 2 * linear.weights, 0
        layers += count * _share(values, ranks)
        constants += count * (_share(blocks, ranks) + whole)
    share = f"1/{ranks} of "
    width = stack.unquantized_width
    embedding = allocated(-(-shape.vocabulary // ranks) * shape.hidden * width)
    formula = f"{share}{shape.vocabulary} x {shape.hidden} x {width} B"
    items = (
        MemoryItem("layer weights", layers, f"{share}{shape.linear_weights} weights"),
        MemoryItem("quantization constants", constants, f"{share}those of blocks, and the others"),
        MemoryItem("embedding", embedding, formula),
        MemoryItem("output head", 0 if shape.tied else embedding, formula),
        MemoryItem("norms and biases", shape.other_weights * width, f"{shape.other_weights} x {width} B"),
    )
    return tuple(item for item in items if item.bytes)


def gathered(shape: ModelShape, stack: StackProfile, ranks: int, *, dequantized: bool) -> Gathered:
    """Return what a rank gathers of the model. `stack` is that of the packed weights."""
    kinds = [shape.linears] if shape.attention_layers else []
    if shape.convolution_layers:
        kinds.append(shape.convolution_linears)
    embedding = allocated(ranks * -(-shape.vocabulary // ranks) * shape.hidden * stack.unquantized_width)
    return Gathered(
        layer=max(_whole(linears, stack, ranks, dequantized=dequantized) for linears in kinds),
        embedding=embedding,
        head=0 if shape.tied else embedding,
        tied=shape.tied,
        layers=shape.layers,
    )


def _whole(linears: Iterable[Linear], stack: StackProfile, ranks: int, *, dequantized: bool) -> int:
    """Return the bytes of the matrices of a layer that ranks have exchanged."""
    total = 0
    for linear in linears:
        values, blocks, _ = matrix_parts(linear.weights, linear.outputs, stack)
        if dequantized:
            values, blocks = 2 * linear.weights, 0
        total += allocated(ranks * -(-values // ranks)) + allocated(ranks * -(-blocks // ranks))
    return total


def _share(size: int, ranks: int) -> int:
    return allocated(-(-size // ranks))


def _item(size: int, what: str) -> MemoryItem:
    return MemoryItem("gathered weights", size, f"{what}, for a moment")
