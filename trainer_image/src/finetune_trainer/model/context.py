"""How many tokens a model takes: the positions of its tables, and the context of its rotary embedding."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, TypeGuard

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

# Names of position tables: embed_positions (OPT, GPT-J), position_embeddings (BERT), wpe (GPT-Neo), pos_emb.
# A table of distances (relative_position_embeddings) limits nothing.
_TABLE = re.compile(r"^(?!rel).*?(?<![^_])(w?pe|pos|positions?)(_|$)")
# With these types the config's maximum is that of the scaled model; with the others, the scale is a factor to it.
_SCALED_MAXIMUM = frozenset({"default", "llama3", "longrope", "su", "mrope", "proportional"})
# Gemma 3 scales its global layers by a factor, and its config has the maximum after it.
_SCALED_FAMILIES = ("gemma3",)


def position_limit(model: Any) -> int | None:
    """Return the largest number of tokens for which the model has positions; None if nothing limits it.

    `model` may be on the meta device. A table is an embedding that was trained, or a buffer that was computed once.
    """
    return min(_table_rows(model), default=None)


def rotary_context(config: Any) -> int | None:
    """Return the tokens that the rotary embedding of a text config covers with its scaling; None without one.

    The rules are those by which servers derive their maximum length.
    """
    parameters = getattr(config, "rope_parameters", None)
    maximum = getattr(config, "max_position_embeddings", None)
    if not isinstance(parameters, dict) or not parameters or not _is_size(maximum):
        return None
    scaled = config.model_type.startswith(_SCALED_FAMILIES)
    parts = [part for part in parameters.values() if isinstance(part, dict)] or [parameters]
    return min(maximum if scaled else _context(part, maximum) for part in parts)


def _table_rows(model: Any) -> Iterator[int]:
    words = model.get_input_embeddings()
    for name, module in model.named_modules():
        leaf = name.rpartition(".")[2]
        if isinstance(module, torch.nn.Embedding) and module is not words and _TABLE.search(leaf):
            # OPT's first rows belong to no position.
            yield module.num_embeddings - getattr(module, "offset", 0)
        for buffer, tensor in module.named_buffers(recurse=False):
            if _TABLE.search(buffer) and tensor.dim() == 2 and tensor.is_floating_point():
                yield tensor.shape[0]


def _context(parameters: Mapping[str, Any], maximum: int) -> int:
    kind = parameters.get("rope_type") or parameters.get("type") or "default"
    factor = parameters.get("factor")
    if (
        kind in _SCALED_MAXIMUM
        or isinstance(factor, bool)
        or not isinstance(factor, int | float)
        or factor <= 1
    ):
        return maximum
    original = parameters.get("original_max_position_embeddings")
    return int((original if kind == "yarn" and _is_size(original) else maximum) * factor)


def _is_size(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
