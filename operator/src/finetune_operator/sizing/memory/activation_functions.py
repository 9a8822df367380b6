"""Memory of the activation functions that `hidden_act` names, beyond the one tensor that each of them saves.

Most are one fused operation that saves its input or its result. Some are several operations in transformers'
activations.py, and each of these saves tensors of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True)
class Activation:
    """Sizes in halves of a tensor of the block's width: a mask of one byte for each element is one half.

    `saved` are tensors that stay until the backward pass, without the input. `forward` and `backward` are temporary
    results beyond the input and the output, or beyond the two gradients. `parameters` are the trained numbers of each
    layer.
    """

    saved: int = 0
    forward: int = 0
    backward: int = 0
    parameters: int = 0


FUSED = Activation()
# 0.5 * x * (1 + tanh(...)): both factors and the tanh are saved, besides the input of the power.
_TANH = Activation(saved=6, forward=4, backward=6)
# As above with an error function, which saves its input instead of its result.
_ERF = Activation(saved=6, forward=2, backward=4)

ACTIVATIONS: Mapping[str, Activation] = {
    **dict.fromkeys(
        (
            "silu",
            "swish",
            "gelu",
            "gelu_pytorch_tanh",
            "relu",
            "relu6",
            "leaky_relu",
            "hardswish",
            "mish",
            "sigmoid",
            "tanh",
            "linear",
        ),
        FUSED,
    ),
    # The rectifier saves its result, which is the square's input.
    "relu2": Activation(backward=6),
    "gelu_new": _TANH,
    "gelu_accurate": _TANH,
    "gelu_python_tanh": _TANH,
    "gelu_fast": Activation(saved=12, forward=2, backward=8),
    "gelu_python": _ERF,
    "gelu_10": Activation(saved=2),
    "quick_gelu": Activation(saved=2, forward=2, backward=4),
    "laplace": Activation(forward=4, backward=4),
    # The product with alpha, the exponential and the condition, and two parameters of each layer.
    "xielu": Activation(saved=5, forward=8, backward=8, parameters=2),
}
