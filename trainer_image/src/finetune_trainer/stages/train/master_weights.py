"""Adapter weights in float32 that multiply in the type of the activations.

A step changes a weight by about the learning rate. bf16 has 8 significant bits, so it rounds most of such a change away:
of a steady change of 2e-5 a step, it realizes half. The weights, their gradients and the optimizer's view of them are
therefore float32 (Micikevicius et al., 2018, section 3.1). Each product takes a copy of its weight in the activations'
type: no activation is widened, and the copy of a LoRA matrix is small. In a model that computes in float32, nothing is
copied.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from peft.tuners.lora.dora import DoraLinearLayer
from peft.tuners.lora.layer import LoraLayer
from peft.utils.integrations import dequantize_module_weight
from torch.nn import functional

from finetune_trainer.model.dequantized import DequantizedLinear

if TYPE_CHECKING:
    from collections.abc import Iterator

_ELEMENTS_AT_ONCE = 1 << 22
"""Elements of a matrix that are added to its update at a time, for the norms of its rows: 16 MiB of float32."""


class MasterLinear(torch.nn.Linear):
    """A linear map whose weight is cast to the type of its input. The weight's gradient has the weight's own type."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002 -- the base class's name
        """Map (..., in) to (..., out), in the type of `input`."""
        return functional.linear(input, self.weight.to(input.dtype))


class MasterDora(DoraLinearLayer):
    """DoRA (Liu et al., 2024, equation 5) with the norms of the rows in float32, as MERGE computes them.

    peft rounds the norms to the type of the activations. In bf16 that changes every row by up to 0.2 %, which is more
    than the magnitudes learn in many steps. It also multiplies an identity matrix with both factors, which takes as much
    memory as the square of the inputs.
    """

    def forward(
        self,
        x: torch.Tensor,
        *,
        lora_A: Any,  # noqa: N803 -- the base class's name
        lora_B: Any,  # noqa: N803 -- the base class's name
        scaling: float,
        base_layer: Any,
        base_result: torch.Tensor | None = None,
        adapter_name: str = "default",  # noqa: ARG002 -- the base class's signature
    ) -> torch.Tensor:
        """Return what is added to the result of `base_layer`: float32, (..., out).

        `base_result` is that result for the same `x`; None if `x` went through dropout.
        """
        norm = _norms(base_layer, lora_A, lora_B, scaling)
        # The norm counts as a constant (section 4.3 of the paper).
        factor = (self.weight / norm).view(1, -1)
        if base_result is None:
            base_result = base_layer(x)
        if base_layer.bias is not None:
            base_result = base_result - base_layer.bias
        added: torch.Tensor = (factor - 1) * base_result + factor * lora_B(lora_A(x)) * scaling
        return added


def _norms(base_layer: Any, lora_a: Any, lora_b: Any, scaling: float) -> torch.Tensor:
    weight: torch.Tensor = (
        base_layer.values
        if isinstance(base_layer, DequantizedLinear)
        else dequantize_module_weight(base_layer)
    )
    return row_norms(weight, lora_a.weight, lora_b.weight, scaling)


@torch.no_grad()
def row_norms(
    weight: torch.Tensor, lora_a: torch.Tensor, lora_b: torch.Tensor, scaling: float
) -> torch.Tensor:
    """Return the Euclidean norm of each row of W + scaling B A: float32, (out,).

    `weight` is (out, in) in any type; `lora_a` is (rank, in) and `lora_b` (out, rank), both float32.
    """
    norms = torch.empty(weight.shape[0], dtype=torch.float32, device=weight.device)
    rows = max(1, _ELEMENTS_AT_ONCE // weight.shape[1])
    for first in range(0, weight.shape[0], rows):
        chosen = slice(first, first + rows)
        # The copy keeps the addition in place from changing the weight itself, which may be float32 already.
        block = weight[chosen].to(torch.float32, copy=True)
        block.addmm_(lora_b[chosen], lora_a, alpha=scaling)
        norms[chosen] = torch.linalg.vector_norm(block, dim=1)
    return norms


def use_master_weights(adapted: Any) -> None:
    """Make all trained weights of a model with a new LoRA adapter float32; they multiply in the activations' type.

    DoRA's magnitudes become the norms in float32, so that the new adapter changes nothing. Raises TypeError if a trained
    weight is no LoRA matrix or magnitude: it would compute in float32.
    """
    changed: set[int] = set()
    for layer in adapted.modules():
        if not isinstance(layer, LoraLayer):
            continue
        # Otherwise peft casts every input to the weights' type, and float32 copies of all inputs stay in memory.
        layer.cast_input_dtype_enabled = False
        for factors in (layer.lora_A, layer.lora_B):
            for name, linear in factors.items():
                factor = _master(linear)
                factors[name] = factor
                changed.add(id(factor.weight))
        for name, magnitude in layer.lora_magnitude_vector.items():
            created = MasterDora(magnitude.fan_in_fan_out)  # type: ignore[no-untyped-call]  # peft has no annotations
            norms = _norms(
                layer.get_base_layer(), layer.lora_A[name], layer.lora_B[name], layer.scaling[name]
            )
            created.weight = torch.nn.Parameter(norms)
            layer.lora_magnitude_vector[name] = created
            changed.add(id(created.weight))
    for name, parameter in adapted.named_parameters():
        if parameter.requires_grad and id(parameter) not in changed:
            raise TypeError(f"every trained weight must be a LoRA matrix or a magnitude, found {name}")


def _master(linear: Any) -> MasterLinear:
    # A subclass may compute something else.
    if linear.bias is not None or type(linear) is not torch.nn.Linear:
        raise TypeError(f"a LoRA factor must be a linear map without bias, found {linear}")
    created = MasterLinear(linear.in_features, linear.out_features, bias=False, device="meta")
    created.weight = linear.weight
    created.weight.data = created.weight.data.float()
    return created


@contextmanager
def kept_values(model: Any) -> Iterator[None]:
    """Undo what happens to the values and types of trained weights inside of the `with` statement.

    TRL's trainer rounds the adapter of every quantized model to bf16 when it is created.
    """
    kept = [(parameter, parameter.data) for parameter in model.parameters() if parameter.requires_grad]
    try:
        yield
    finally:
        for parameter, data in kept:
            parameter.data = data
