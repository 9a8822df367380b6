"""The number of layers of each kind: with full attention, with a sliding window, with a short convolution.

A config lists the kind of each layer (`layer_types`), or gives a pattern, or relies on the family's. PREPARE reports
such a list as a text with the number of each kind, for example `conv=10 full_attention=6`.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from finetune_operator.sizing.memory.config_reader import (
    ConfigReader,
    FamilyUnknownError,
    ShapeUnknownError,
    unexpected,
)

if TYPE_CHECKING:
    from finetune_operator.sizing.memory.family import Family

_FULL = frozenset({"full_attention", "attention"})
_SLIDING = "sliding_attention"
_CONVOLUTION = "conv"
_COUNT = re.compile(r"([a-z_]+)=(\d{1,6})")


@dataclass(frozen=True)
class LayerKinds:
    """Numbers of layers."""

    full: int
    sliding: int = 0
    convolution: int = 0


def layer_kinds(reader: ConfigReader, family: Family, layers: int) -> LayerKinds:
    """Count the layers of each kind. Raises FamilyUnknownError for kinds that no formula knows."""
    window = _window(reader, family)
    listed = _listed(reader, layers) if family.layer_types else None
    if listed is None and family.default_kind is not None:
        listed = Counter({family.default_kind: layers})
    if listed is None and family.convolutions:
        attention = _attention_layers(reader.value("full_attn_idxs"), layers)
        return LayerKinds(attention, convolution=layers - attention)
    if listed is None:
        sliding = _sliding(reader, family, layers) if window else 0
        return LayerKinds(layers - sliding, sliding)
    return _known_kinds(listed, family, window=window)


def _window(reader: ConfigReader, family: Family) -> bool:
    if family.window_flag is not None and not reader.flag(family.window_flag):
        return False
    return reader.optional("sliding_window") is not None


def _sliding(reader: ConfigReader, family: Family, layers: int) -> int:
    """Return the number of layers with a sliding window if the config lists none."""
    first = reader.value("max_window_layers")
    if isinstance(first, int) and not isinstance(first, bool):
        # Layers before this one see all tokens (Qwen).
        return max(0, layers - max(0, first))
    pattern = family.pattern
    if pattern and reader.value("sliding_window_pattern") is not None:
        pattern = reader.number("sliding_window_pattern")
    return layers - (layers // pattern if pattern else 0)


def _listed(reader: ConfigReader, layers: int) -> Counter[str] | None:
    """Return the number of layers of each kind that the config lists; None if it lists none."""
    value = reader.value("layer_types")
    if value is None:
        return None
    if isinstance(value, str):
        found = _COUNT.findall(value)
        counts = Counter({kind: int(count) for kind, count in found})
        readable = " ".join(f"{kind}={count}" for kind, count in found) == value
    else:
        readable = isinstance(value, list) and all(isinstance(kind, str) for kind in value)
        counts = Counter(value if readable else ())
    if not readable:
        raise unexpected("layer_types", "a list with the kind of each layer", value)
    if counts.total() != layers:
        raise ShapeUnknownError(
            f"config.json's layer_types must list num_hidden_layers ({layers}) layers, found {counts.total()}"
        )
    return counts


def _attention_layers(value: Any, layers: int) -> int:
    """Return the number of layers with attention; PREPARE reports the number in place of the list."""
    if value is None:
        return layers
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= layers:
        return value
    if isinstance(value, list) and all(type(index) is int for index in value):
        return len(set(value) & set(range(layers)))
    raise unexpected("full_attn_idxs", "a list of layers", value)


def _known_kinds(counts: Counter[str], family: Family, *, window: bool) -> LayerKinds:
    known = {*_FULL, _SLIDING, *((_CONVOLUTION,) if family.convolutions else ())}
    other = next((kind for kind in counts if kind not in known), None)
    if other is not None:
        raise FamilyUnknownError(
            f"config.json's layer_types must be {', '.join(sorted(known))} for a formula, found {counts[other]} layers of "
            f"{other}"
        )
    full = sum(counts[kind] for kind in _FULL)
    sliding = counts[_SLIDING]
    return LayerKinds(full + (0 if window else sliding), sliding if window else 0, counts[_CONVOLUTION])
