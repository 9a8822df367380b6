"""A canary for packing: proves on a few tokens that rows of one pass do not see each other in a loaded model.

Attention is not the only way from one row to the next: a convolution, a recurrent state and biases by distance (ALiBi) are
others. So the model itself is tried, whatever its name.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from finetune_trainer.model.attention import attention_of
from finetune_trainer.model.matrix_stack import has_experts
from finetune_trainer.model.module_outputs import ModuleOutputs
from finetune_trainer.model.out_of_memory import is_device_out_of_memory
from finetune_trainer.model.output_head import TOLERANCE, hidden_states, language_model
from finetune_trainer.model.packed_attention import (
    ATTENTIONS,
    NotPackableError,
    PackedRows,
    packed_states,
    using_attention,
)

_NAME = "finetune_packing_canary"
_LENGTHS = (9, 7, 1)


def packing_obstacle(model: Any, longest: int) -> str | None:
    """Return why rows of at most `longest` tokens cannot share a pass of `model`; None if they can.

    Two passes differ in the first row only. Then the states of the rows behind it must be the same bit for bit, and those
    of a row by itself up to rounding. If rows are longer than the model's sliding window, its layers must pass the window
    to their attention. The model is as before afterwards.
    """
    training = model.training
    model.eval()
    try:
        return _obstacle(model, longest)
    except NotPackableError as error:
        return f"rows of this model cannot share a pass: {error}"
    except (AttributeError, IndexError, RuntimeError, TypeError, ValueError) as error:
        if is_device_out_of_memory(error):
            raise
        return (
            f"this model's forward pass does not take packed rows: {type(error).__name__}: {str(error)[:200]}"
        )
    finally:
        model.train(training)


@torch.no_grad()
def _obstacle(model: Any, longest: int) -> str | None:
    causal = language_model(model)
    config = causal.config.get_text_config()
    vocabulary = config.vocab_size
    if getattr(config, "attention_dropout", None):
        return "rows of this model cannot share a pass: its attention drops scores, which the kernel for rows cannot"
    device = causal.get_input_embeddings().weight.device
    attention = attention_of(causal.config, device.type, packed=True)
    if attention.backend is None:
        return f"rows of this model cannot share a pass: {attention.reason}"
    compute = ATTENTIONS[attention.implementation]
    # Neighboring ids, so that any vocabulary has enough of them.
    ids = torch.arange(sum(_LENGTHS), device=device) % vocabulary
    other = ids.clone()
    other[: _LENGTHS[0]] = ids[: _LENGTHS[0]].flip(0)
    rows = PackedRows.of(_LENGTHS).to(device)
    _require_no_dropout(model, ids, rows, compute)
    windows: set[int] = set()
    states, changed = (
        _states(model, tokens, rows, partial(_noting, windows, compute)) for tokens in (ids, other)
    )
    window = _window(config)
    if window is not None and longest > window and window not in windows:
        return "rows of this model cannot share a pass: its layers do not pass their sliding window"
    behind = rows.slices[0].stop
    difference = float((states[behind:] - changed[behind:]).abs().max())
    # The products of an expert have the tokens of all rows, so their sums may have another order.
    allowed = TOLERANCE[causal.dtype][0] * float(states.abs().max()) if has_experts(causal) else 0.0
    if not difference <= allowed:
        layer = _leaking_layer(model, (ids, other), rows, compute, allowed)
        return (
            f"rows of this model that share a pass see each other: the states of one change by {difference:.3g} with another, "
            f"first in {layer}"
        )
    for place in rows.slices:
        alone = hidden_states(model, ids[place][None])[0]
        difference, largest = float((states[place] - alone).abs().max()), float(alone.abs().max())
        if difference > TOLERANCE[causal.dtype][1] * largest:
            return (
                f"rows of this model that share a pass must be computed as by themselves (largest state {largest:.3g}), "
                f"found a difference of {difference:.3g}, first in {_differing_layer(model, ids, rows, place, compute)}"
            )
    return None


def _states(model: Any, ids: torch.Tensor, rows: PackedRows, attention: Any) -> torch.Tensor:
    """Return the states (tokens, width) of a packed pass whose layers use `attention`."""
    ALL_ATTENTION_FUNCTIONS.register(_NAME, attention)
    position_ids = torch.cat([torch.arange(length, device=ids.device) for length in rows.lengths])
    with using_attention(model, _NAME):
        return packed_states(model, ids[None], position_ids[None], rows)[0]


def _require_no_dropout(model: Any, ids: torch.Tensor, rows: PackedRows, attention: Any) -> None:
    """Raise NotPackableError if attention drops scores in training, by whatever member of the config."""
    with torch.random.fork_rng(devices=[ids.device] if ids.is_cuda else []):
        model.train()
        try:
            _states(model, ids, rows, attention)
        finally:
            model.eval()


def _leaking_layer(
    model: Any, inputs: tuple[torch.Tensor, torch.Tensor], rows: PackedRows, attention: Any, allowed: float
) -> str:
    """Return the name of the first module whose outputs for the second row on differ between two inputs of the first row."""
    outputs = []
    for ids in inputs:
        watched = ModuleOutputs()
        with watched.watching(language_model(model)):
            _states(model, ids, rows, attention)
        outputs.append(watched.found)
    behind, tokens = rows.slices[0].stop, sum(rows.lengths)
    for name, output in outputs[0].items():
        other = outputs[1].get(name)
        if other is None or not output.shape[:2] == other.shape[:2] == (1, tokens):
            continue
        if float((output[:, behind:] - other[:, behind:]).abs().max()) > allowed:
            return name
    return "the last layer"


def _differing_layer(model: Any, ids: torch.Tensor, rows: PackedRows, place: slice, attention: Any) -> str:
    """Return the name of the first module whose outputs for the row at `place` differ from those of the row by itself."""
    packed, alone = ModuleOutputs(), ModuleOutputs()
    with packed.watching(language_model(model)):
        _states(model, ids, rows, attention)
    with alone.watching(language_model(model)):
        hidden_states(model, ids[place][None])
    shapes = (1, sum(rows.lengths)), (1, place.stop - place.start)
    share = TOLERANCE[language_model(model).dtype][1]
    for name, output in packed.found.items():
        other = alone.found.get(name)
        if other is None or (output.shape[:2], other.shape[:2]) != shapes:
            continue
        if float((output[:, place] - other).abs().max()) > share * float(other.abs().max()):
            return name
    return "the last layer"


def _noting(windows: set[int], attention: Any, *arguments: Any, **settings: Any) -> tuple[torch.Tensor, None]:
    """Compute `attention`, and add the window that a layer passes to `windows`."""
    window = settings.get("sliding_window")
    if window is not None:
        windows.add(int(window))
    found: tuple[torch.Tensor, None] = attention(*arguments, **settings)
    return found


def _window(config: Any) -> int | None:
    """Return the tokens of the model's sliding window, None if it has none."""
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None)
    if window is None or getattr(config, "use_sliding_window", True) is False:
        return None
    return None if kinds is not None and "sliding_attention" not in kinds else int(window)
