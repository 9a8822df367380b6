"""The fastest that a training step could be on this device: its matrix products and its attention, and nothing else.

Every product of a layer is measured in bf16 with its own sizes, forward and for the gradient of the activations. Frozen
weights have no gradient. Attention is torch's kernel, forward and backward. Norms, rotary embeddings, adapters, the
optimizer, dequantizing and the loss count as nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.gpu.timing import seconds_of

_ROUNDS = 5


@dataclass(frozen=True)
class Roofline:
    """Seconds of all layers for the tokens of one pass, and the tokens per second that follow."""

    layers: int
    matrix_seconds: float
    attention_seconds: float
    tokens: int

    @property
    def tokens_per_second(self) -> float:
        """Upper bound of the training's speed."""
        return self.tokens / (self.matrix_seconds + self.attention_seconds)


def matrices(config: dict[str, Any]) -> dict[tuple[int, int], int]:
    """Return how often a forward pass multiplies with a matrix of (inputs, outputs): all layers and the output head."""
    hidden, inner, width = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    queries, keys = config["num_attention_heads"] * width, config["num_key_value_heads"] * width
    attention = [(hidden, queries), (hidden, keys), (hidden, keys), (queries, hidden)]
    layer = [*attention, (hidden, inner), (hidden, inner), (inner, hidden)]
    found = {(hidden, config["vocab_size"]): 1}
    for shape in layer:
        found[shape] = found.get(shape, 0) + config["num_hidden_layers"]
    return found


def measure(config: dict[str, Any], length: int, rows: int, device: str) -> Roofline:
    """Measure the products and the attention of `rows` rows of `length` tokens."""
    tokens = length * rows
    seconds = 0.0
    for (inputs, outputs), count in matrices(config).items():
        weight = torch.randn(outputs, inputs, dtype=torch.bfloat16, device=device)
        states = torch.randn(tokens, inputs, dtype=torch.bfloat16, device=device)
        gradient = torch.randn(tokens, outputs, dtype=torch.bfloat16, device=device)
        seconds += count * (
            _seconds(lambda x=states, w=weight: x @ w.T, device)  # type: ignore[misc]  # defaults bind the loop's values
            + _seconds(lambda g=gradient, w=weight: g @ w, device)  # type: ignore[misc]  # same
        )
    layers = config["num_hidden_layers"]
    return Roofline(layers, seconds, layers * _attention(config, length, rows, device), tokens)


def _attention(config: dict[str, Any], length: int, rows: int, device: str) -> float:
    """Return the seconds of one layer's causal attention, forward and backward."""
    heads, keys, width = (config[name] for name in ("num_attention_heads", "num_key_value_heads", "head_dim"))
    query, key, value = (
        torch.randn(rows, count, length, width, dtype=torch.bfloat16, device=device, requires_grad=True)
        for count in (heads, keys, keys)
    )
    outer = torch.randn(rows, heads, length, width, dtype=torch.bfloat16, device=device)

    def both() -> None:
        mixed = torch.nn.functional.scaled_dot_product_attention(
            query, key, value, is_causal=True, enable_gqa=heads != keys
        )
        mixed.backward(outer)

    return _seconds(both, device)


def _seconds(work: Callable[[], object], device: str) -> float:
    """Return the smallest seconds of `work` among some rounds, after one that warms up."""
    return seconds_of(work, device, rounds=_ROUNDS, warm_up=1)[0]
