"""By how many bytes TRAIN's packed parameters differ from those of a run on fake tensors.

A run on fake tensors multiplies with matrices in 16 bits. TRAIN keeps them in NF4, unpacks one after another, and may adapt
each (ADR 0067).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from finetune_trainer.model.adapter_targets import adapted_modules
from finetune_trainer.trace.allocations import rounded

if TYPE_CHECKING:
    from finetune_trainer.contract.run_spec import Lora
    from finetune_trainer.model.packed_parameters import PackedParameter, PackedPart

_BLOCK, _CONSTANTS_BLOCK = 64, 256
_WIDTH = 2
"""Bytes of a value in 16 bits."""
_MASTER = 4
"""Bytes of an adapter's value."""
_SCALED = 3 * _MASTER
"""Bytes that a product keeps for each of DoRA's magnitudes: its norm, its factor, and that less one."""
_CODES = 16 * 4, 256 * 4, 4
"""Bytes of the tables of both levels, and of the offset."""
_CHOSEN = (
    "num_experts_per_tok",
    "num_experts_per_token",
    "n_experts_per_tok",
    "num_selected_experts",
    "experts_per_token",
    "moe_topk",
    "moe_k",
    "moe_top_k",
    "top_k",
)
"""Members of configs that count the experts of a token."""


@dataclass(frozen=True)
class AdaptedSizes:
    """Sizes of the adapter of one packed parameter, whose products are in `layer`.

    `trained` counts its values, and `factor` those of its largest factor. For the backward pass, products keep `saved` bytes
    for each token, and `cast` bytes for the factors in 16 bits.
    """

    layer: str
    trained: int
    factor: int
    saved: int
    cast: int

    @property
    def trained_bytes(self) -> int:
        """Bytes of the adapter, and of its gradients."""
        return _MASTER * self.trained

    def kept(self, tokens: int) -> int:
        """Bytes that the products with `tokens` tokens keep."""
        return tokens * self.saved + self.cast


@dataclass(frozen=True)
class PackedSizes:
    """Sizes of a model's packed parameters; all are 0 without any.

    `weights` counts their values, `bytes` what they take in NF4 and `plain_bytes` in 16 bits. `unpacked` is what the product
    with one matrix needs at most, because products come one after another. `adapted` counts matrices with an adapter, and
    `adapters` has the sizes of each adapted parameter.
    """

    modules: int = 0
    weights: int = 0
    bytes: int = 0
    plain_bytes: int = 0
    unpacked: int = 0
    adapted: int = 0
    adapters: tuple[AdaptedSizes, ...] = ()

    @property
    def trained(self) -> int:
        """The values of the adapter."""
        return sum(one.trained for one in self.adapters)

    @property
    def trained_bytes(self) -> int:
        """Bytes of the adapters, and of their gradients."""
        return sum(one.trained_bytes for one in self.adapters)

    def kept(self, tokens: int) -> int:
        """Bytes that products with an adapter keep for the backward pass of `tokens` tokens."""
        return sum(one.kept(tokens) for one in self.adapters)

    def backward(self, tokens: int, *, accumulates: bool) -> int:
        """Bytes that the backward pass of `tokens` tokens needs at most: an unpacked matrix, what is kept, and new gradients.

        The gradients of a parameter's matrices appear while what its products kept goes. After its last product, those of a
        factor are joined to one tensor, and exist twice. If the pass `accumulates`, that of earlier passes takes them in then.
        """
        if not accumulates:
            return _most(self.adapters, tokens, self.unpacked)
        whole = self.kept(tokens)
        layers: dict[str, list[AdaptedSizes]] = {}
        for one in self.adapters:
            layers.setdefault(one.layer, []).append(one)
        return max(
            (
                whole - sum(one.kept(tokens) for one in held) + _most(held, tokens, self.unpacked)
                for held in layers.values()
            ),
            default=self.unpacked,
        )


def packed_sizes(
    parameters: Sequence[PackedParameter], linear: Collection[str], lora: Lora, config: Any
) -> PackedSizes:
    """Return the sizes of a model with this text `config`. `linear` names its modules that may get an adapter.

    The adapter of a `Conv1D` is one of peft's, which a fake run has, so it is not counted here.
    """
    if not parameters:
        return PackedSizes()
    parts = [(parameter, part) for parameter in parameters for part in parameter.parts]
    chosen = adapted_modules(lora.target_modules, {*linear, *(part.module for _, part in parts)})
    adapted = [
        (parameter, part) for parameter, part in parts if part.module in chosen and not parameter.is_conv1d
    ]
    return PackedSizes(
        modules=len(parts),
        weights=sum(parameter.elements for parameter in parameters),
        bytes=sum(_nf4_bytes(_elements(parameter, part)) for parameter, part in parts),
        plain_bytes=sum(rounded(_WIDTH * parameter.elements) for parameter in parameters),
        unpacked=max(_unpacked_bytes(parameter, lora) for parameter in parameters),
        adapted=len(adapted),
        adapters=tuple(_adapters(adapted, lora, config)),
    )


def combined(groups: Iterable[PackedSizes]) -> PackedSizes:
    """Return the sizes of a model from those of its parts: of each layer, and of what is outside of the layers."""
    known = list(groups)
    return PackedSizes(
        modules=sum(one.modules for one in known),
        weights=sum(one.weights for one in known),
        bytes=sum(one.bytes for one in known),
        plain_bytes=sum(one.plain_bytes for one in known),
        unpacked=max((one.unpacked for one in known), default=0),
        adapted=sum(one.adapted for one in known),
        adapters=tuple(adapter for one in known for adapter in one.adapters),
    )


def _elements(parameter: PackedParameter, part: PackedPart) -> int:
    experts = parameter.experts if part.expert is None else 1
    return experts * (part.last - part.first) * parameter.columns


def _nf4_bytes(elements: int) -> int:
    """Return the bytes of a tensor in NF4 with its constants (bitsandbytes' quantize_4bit), each allocated by itself."""
    blocks = -(-elements // _BLOCK)
    sizes = (-(-elements // 2), blocks, 4 * -(-blocks // _CONSTANTS_BLOCK), *_CODES)
    return sum(rounded(size) for size in sizes)


def _unpacked_bytes(parameter: PackedParameter, lora: Lora) -> int:
    """Return the bytes that `packed_weight.PackedWeight` takes for a moment to multiply with one matrix.

    Its scales become float32, and several parts are joined into a second matrix. DoRA's norms need the weights of a part in
    float32, and once more in the order of a linear layer.
    """
    elements = parameter.rows * parameter.columns
    parts = len({part.first for part in parameter.parts})
    product = _WIDTH * elements * (2 if parts > 1 else 1) + _MASTER * -(-elements // _BLOCK)
    if lora.variant != "DoRA":
        return product
    return max(product, _MASTER * elements // parts * (2 if parameter.transposed else 1))


def _adapters(
    adapted: Sequence[tuple[PackedParameter, PackedPart]], lora: Lora, config: Any
) -> Iterator[AdaptedSizes]:
    """Yield the sizes of each parameter with an adapter, as `packed_weight.PackedWeight` makes and uses it."""
    held: dict[str, list[PackedPart]] = {}
    for parameter, part in adapted:
        held.setdefault(parameter.name, []).append(part)
    for parameter in {parameter.name: parameter for parameter, _ in adapted}.values():
        matrices = len({part.first for part in parameter.parts})
        rows, columns = parameter.rows, parameter.columns
        inputs, outputs = (rows, columns) if parameter.transposed else (columns, rows)
        each = [_factors(parameter, part, lora) for part in held[parameter.name]]
        # Dropout keeps its result and a mask of bytes.
        width = _WIDTH + 1 if lora.dropout > 0 else _WIDTH
        # DoRA multiplies the result without the update, and the update, by trained factors.
        rescaled = 2 * _WIDTH * outputs if lora.variant == "DoRA" else 0
        saved = width * inputs + _WIDTH * lora.rank * matrices + rescaled
        yield AdaptedSizes(
            layer=parameter.name.rpartition(".")[0],
            trained=sum(sum(one) for one in each),
            factor=max(sum(sizes) for sizes in zip(*each, strict=True)),
            saved=saved * _experts_of_token(parameter, config),
            cast=sum(_WIDTH * (a + b) + _SCALED * magnitudes for a, b, magnitudes in each),
        )


def _most(adapters: Sequence[AdaptedSizes], tokens: int, unpacked: int) -> int:
    """Return the most bytes of the backward pass through parameters, in whatever order their products come."""
    either = [max(one.kept(tokens), one.trained_bytes) for one in adapters]
    joined = (
        one.trained_bytes + _MASTER * one.factor - found for one, found in zip(adapters, either, strict=True)
    )
    return sum(either) + max(unpacked, *joined, 0)


def _factors(parameter: PackedParameter, part: PackedPart, lora: Lora) -> tuple[int, int, int]:
    """Return the values of A, of B and of DoRA's magnitudes for a part of all its experts."""
    rows, columns = part.last - part.first, parameter.columns
    inputs, outputs = (rows, columns) if parameter.transposed else (columns, rows)
    count = parameter.experts if part.expert is None else 1
    magnitudes = outputs if lora.variant == "DoRA" else 0
    return count * lora.rank * inputs, count * lora.rank * outputs, count * magnitudes


def _experts_of_token(parameter: PackedParameter, config: Any) -> int:
    """Return how many matrices of a parameter multiply each token; all if the config does not say it."""
    found = (getattr(config, name, None) for name in _CHOSEN)
    count = next((value for value in found if type(value) is int and value > 0), parameter.experts)
    return min(count, parameter.experts)
