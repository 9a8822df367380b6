"""By how many bytes TRAIN's packed parameters differ from those of a run on fake tensors.

A run on fake tensors multiplies with matrices in 16 bits. TRAIN keeps them in NF4, unpacks one after another, and may adapt
each (ADR 0067).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
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
class PackedSizes:
    """Sizes of a model's packed parameters; all are 0 without any.

    `weights` counts their values, `bytes` what they take in NF4 and `plain_bytes` in 16 bits. `unpacked` is what the product
    with one matrix needs at most, because products come one after another. `adapted` counts matrices with an adapter,
    `trained` the adapter's values, and `trained_layer` those of one layer at most. `saved_deep` and `saved_layer` are the
    bytes per token that products with an adapter keep for the backward pass: of all layers, and at most of one. `cast_deep`
    and `cast_layer` are the same for the adapter's weights in 16 bits.
    """

    modules: int = 0
    weights: int = 0
    bytes: int = 0
    plain_bytes: int = 0
    unpacked: int = 0
    adapted: int = 0
    trained: int = 0
    trained_layer: int = 0
    saved_deep: int = 0
    saved_layer: int = 0
    cast_deep: int = 0
    cast_layer: int = 0

    @property
    def trained_bytes(self) -> int:
        """Bytes of the adapter, and of its gradients."""
        return _MASTER * self.trained

    def new_gradients(self, *, accumulates: bool) -> int:
        """Bytes of gradients that a backward pass makes before it ends, beside those of earlier passes.

        A gradient is complete when all products of its layer have added to it. Only then it goes into that of earlier
        passes, if the pass `accumulates`. So those of one layer exist twice.
        """
        return _MASTER * (self.trained_layer if accumulates else self.trained)


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
    kept: dict[str, int] = {}
    cast: dict[str, int] = {}
    trained: dict[str, int] = {}
    for parameter in {parameter.name: parameter for parameter, _ in adapted}.values():
        layer = parameter.name.rpartition(".")[0]
        inputs = parameter.rows if parameter.transposed else parameter.columns
        low = lora.rank * len({part.first for part in parameter.parts})
        kept[layer] = kept.get(layer, 0) + _WIDTH * (inputs + low) * _experts_of_token(parameter, config)
    for parameter, part in adapted:
        layer = parameter.name.rpartition(".")[0]
        factors = _factors(parameter, part, lora)
        cast[layer] = cast.get(layer, 0) + _WIDTH * factors
        trained[layer] = trained.get(layer, 0) + factors
    return PackedSizes(
        modules=len(parts),
        weights=sum(parameter.elements for parameter in parameters),
        bytes=sum(_nf4_bytes(_elements(parameter, part)) for parameter, part in parts),
        plain_bytes=sum(rounded(_WIDTH * parameter.elements) for parameter in parameters),
        unpacked=max(_unpacked_bytes(parameter, lora) for parameter in parameters),
        adapted=len(adapted),
        trained=sum(trained.values()),
        trained_layer=max(trained.values(), default=0),
        saved_deep=sum(kept.values()),
        saved_layer=max(kept.values(), default=0),
        cast_deep=sum(cast.values()),
        cast_layer=max(cast.values(), default=0),
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
        trained=sum(one.trained for one in known),
        trained_layer=max((one.trained_layer for one in known), default=0),
        saved_deep=sum(one.saved_deep for one in known),
        saved_layer=max((one.saved_layer for one in known), default=0),
        cast_deep=sum(one.cast_deep for one in known),
        cast_layer=max((one.cast_layer for one in known), default=0),
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


def _factors(parameter: PackedParameter, part: PackedPart, lora: Lora) -> int:
    """Return the values of the factors of a part's adapter, as `packed_weight.PackedWeight.add_adapter` makes them."""
    rows = part.last - part.first
    outputs = parameter.columns if parameter.transposed else rows
    matrix = lora.rank * (rows + parameter.columns) + (outputs if lora.variant == "DoRA" else 0)
    return matrix * (parameter.experts if part.expert is None else 1)


def _experts_of_token(parameter: PackedParameter, config: Any) -> int:
    """Return how many matrices of a parameter multiply each token; all if the config does not say it."""
    found = (getattr(config, name, None) for name in _CHOSEN)
    count = next((value for value in found if type(value) is int and value > 0), parameter.experts)
    return min(count, parameter.experts)
