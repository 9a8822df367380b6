"""Attention of rows that share one pass: each token attends to earlier tokens of its own row, and to nothing else.

transformers' own way is a mask over all pairs of tokens. It takes the square of the pass, and it excludes the kernels
that keep no scores. Here a kernel for rows of varying length gets the rows' bounds, or each row is computed by itself.
`model.attention_policy` decides which.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.attention.varlen import varlen_attn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from finetune_trainer.model.attention_policy import IMPLEMENTATIONS, OLDEST_CAPABILITY, WIDEST_HEAD
from finetune_trainer.model.output_head import body_outputs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

_ARGUMENT = "packed_rows"
_REFUSED = ("position_bias", "s_aux", "head_mask")
"""Arguments that change the scores. No architecture that passes them is packed."""

_Row = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""Query, key and value."""


@dataclass(frozen=True)
class _Scores:
    """How scores are made: their scale, the tokens of the sliding window, and the cap."""

    scale: float
    window: int | None
    softcap: float | None


class NotPackableError(Exception):
    """An architecture does not compute packed rows; the message says why."""


@dataclass(frozen=True)
class PackedRows:
    """The rows of one pass, in order: their lengths in tokens, and their bounds (int32, rows + 1) on the device."""

    lengths: tuple[int, ...]
    bounds: torch.Tensor

    @classmethod
    def of(cls, lengths: Sequence[int]) -> PackedRows:
        """Return rows of these lengths, with bounds on the CPU."""
        return cls(tuple(lengths), torch.tensor([0, *accumulate(lengths)], dtype=torch.int32))

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> PackedRows:
        """Return the same rows with their bounds on `device`."""
        return PackedRows(self.lengths, self.bounds.to(device, non_blocking=non_blocking))

    @property
    def slices(self) -> list[slice]:
        """The places of the rows."""
        return [slice(*bounds) for bounds in pairwise(accumulate(self.lengths, initial=0))]


def packed_states(
    model: Any, input_ids: torch.Tensor, position_ids: torch.Tensor, rows: PackedRows
) -> torch.Tensor:
    """Return the hidden states (1, tokens, width) of packed rows, as the head projects them.

    `input_ids` and `position_ids` are (1, tokens). Call it within `using_attention`, which must last until the backward
    pass has ended: gradient checkpointing repeats the forward pass there.
    """
    states: torch.Tensor = packed_outputs(model, input_ids, position_ids, rows).last_hidden_state
    return states


def packed_outputs(
    model: Any, input_ids: torch.Tensor, position_ids: torch.Tensor, rows: PackedRows, **settings: Any
) -> Any:
    """Return all that the body of a model gives for packed rows, as `packed_states` says."""
    return body_outputs(model, input_ids, position_ids=position_ids, **{_ARGUMENT: rows}, **settings)


@contextmanager
def using_attention(model: Any, name: str) -> Iterator[None]:
    """Let all layers of `model` use the attention `name` of transformers' register inside of the `with` statement."""
    configs = {id(config): config for config in (model.config, model.config.get_text_config())}.values()
    before = [config._attn_implementation for config in configs]  # noqa: SLF001 -- transformers reads it there
    try:
        for config in configs:
            # The public setter walks over all modules.
            config._attn_implementation = name  # noqa: SLF001 -- see above
        yield
    finally:
        for config, earlier in zip(configs, before, strict=True):
            config._attn_implementation = earlier  # noqa: SLF001 -- see above


def _packed(
    compute: Callable[[_Row, PackedRows, _Scores], torch.Tensor],
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    is_causal: bool | None = None,  # noqa: FBT001 -- the signature of transformers' attentions
    **arguments: Any,
) -> tuple[torch.Tensor, None]:
    """Return the attention (1, tokens, heads, width) of packed rows, in the signature of transformers' attentions.

    `query`, `key` and `value` are (1, heads, tokens, width); keys and values may have fewer heads. With
    `sliding_window`, a token attends to the last so many tokens, itself included. `softcap` is Gemma 2's, after the
    scaling. Raises NotPackableError if the model does not pass the rows, or wants scores that this does not compute.
    """
    rows: PackedRows | None = arguments.get(_ARGUMENT)
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    _require_packable(rows, attention_mask, arguments, causal=causal, dropout=dropout)
    assert rows is not None  # noqa: S101 -- for mypy: the line above raises
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    return compute((query, key, value), rows, _Scores(scale, sliding_window, softcap)), None


def _by_kernel(parts: _Row, rows: PackedRows, scores: _Scores) -> torch.Tensor:
    """Compute all rows in one kernel. Raises NotPackableError if a layer differs from what the policy was told."""
    query, key, value = parts
    if scores.softcap is not None:
        raise NotPackableError("its layers cap their scores, and its config does not say so")
    if not has_kernel(query, value):
        raise NotPackableError("this GPU has no kernel for rows of varying length with its heads")
    mixed: Any = varlen_attn(
        query[0].transpose(0, 1),
        key[0].transpose(0, 1),
        value[0].transpose(0, 1),
        rows.bounds,
        rows.bounds,
        max(rows.lengths),
        max(rows.lengths),
        scale=scores.scale,
        window_size=(-1 if scores.window is None else scores.window - 1, 0),
        enable_gqa=key.shape[1] != query.shape[1],
    )
    found: torch.Tensor = mixed.unsqueeze(0)
    return found


def _row_by_row(parts: _Row, rows: PackedRows, scores: _Scores) -> torch.Tensor:
    query, key, value = parts
    found = []
    for place in rows.slices:
        one = query[:, :, place], key[:, :, place], value[:, :, place]
        if scores.softcap is None:
            found.append(_fused(*one, scores.scale, scores.window))
        else:
            found.append(_capped(*one, scores.scale, scores.window, scores.softcap))
    return torch.cat([part.transpose(1, 2) for part in found], dim=1)


def has_kernel(query: torch.Tensor, value: torch.Tensor) -> bool:
    """Return whether the device has a kernel for rows of varying length with heads of these types and sizes."""
    return (
        query.is_cuda
        and query.dtype in (torch.bfloat16, torch.float16)
        and query.shape[-1] == value.shape[-1] <= WIDEST_HEAD
        and query.shape[-1] % 8 == 0
        and torch.version.hip is None
        and torch.cuda.get_device_capability(query.device) >= OLDEST_CAPABILITY
    )


def _require_packable(
    rows: PackedRows | None,
    mask: torch.Tensor | None,
    arguments: dict[str, Any],
    *,
    causal: bool,
    dropout: float,
) -> None:
    if rows is None:
        raise NotPackableError("its layers do not get the bounds of the rows")
    if mask is not None:
        raise NotPackableError("it masks its attention itself")
    if not causal:
        raise NotPackableError("its tokens attend to later ones")
    if dropout:
        raise NotPackableError("its attention drops scores, which the kernel for rows cannot")
    biased = [name for name in _REFUSED if arguments.get(name) is not None]
    if biased:
        raise NotPackableError(f"its attention has the argument {biased[0]}")


def _fused(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scale: float,
    window: int | None,
) -> torch.Tensor:
    length = query.shape[2]
    limited = window is not None and length > window
    shared = key.shape[1] != query.shape[1]
    if shared and (limited or not query.shape[-1] == value.shape[-1] <= WIDEST_HEAD):
        # With shared heads, only the kernel for these sizes and without a mask keeps no scores.
        groups = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
        shared = False
    return torch.nn.functional.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=_visible(length, window, query.device) if limited else None,
        is_causal=not limited and length > 1,
        scale=scale,
        enable_gqa=shared,
    )


def _capped(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scale: float,
    window: int | None,
    softcap: float,
) -> torch.Tensor:
    """Return the attention of one row with capped scores: the products that transformers' eager attention computes."""
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    scores = torch.matmul(query, key.transpose(2, 3)) * scale
    scores = torch.tanh(scores / softcap) * softcap
    scores = scores.masked_fill(
        ~_visible(query.shape[2], window, query.device), torch.finfo(scores.dtype).min
    )
    shares = torch.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    return torch.matmul(shares, value)


def _visible(length: int, window: int | None, device: torch.device) -> torch.Tensor:
    """Return which tokens of a row (second axis) each of its tokens attends to."""
    visible = torch.ones(length, length, dtype=torch.bool, device=device).tril()
    return visible if window is None else visible.triu(1 - window)


ATTENTIONS: dict[str, Any] = {
    choice: partial(_packed, compute)
    for choice, compute in (
        (IMPLEMENTATIONS["Varlen"], _by_kernel),
        (IMPLEMENTATIONS["RowByRow"], _row_by_row),
    )
}
"""The attentions of packed rows by their names in transformers' register.

They have no mask functions, so models create no mask for them.
"""
for _name, _attention in ATTENTIONS.items():
    ALL_ATTENTION_FUNCTIONS.register(_name, _attention)
