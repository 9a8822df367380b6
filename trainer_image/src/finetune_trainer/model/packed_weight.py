"""A parameter of many matrices in 4 bits. A product unpacks the one matrix that it needs, forward and again backward.

`PackedWeight` stands in the place of the parameter, so that the model's own code routes, weighs and activates
(`model.matrix_stack`). At most two matrices are unpacked at one time.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import bitsandbytes.functional
import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch.nn import functional

from finetune_trainer.model.matrix_stack import MatrixStack
from finetune_trainer.model.parameter_rows import ParameterRows

if TYPE_CHECKING:
    from collections.abc import Sequence

    from finetune_trainer.contract.run_spec import Lora
    from finetune_trainer.model.packed_parameters import PackedParameter

# bitsandbytes is only partly typed; Any is written once here instead of at every call.
bnb: Any = bitsandbytes.functional
_ADAPTER = "default"
_BLOCK, _NESTED = 64, 256


@dataclass(frozen=True)
class Nf4Rows:
    """Rows of a matrix in NF4 with double quantization. `first_block` counts the blocks of the tensor before them."""

    packed: torch.Tensor
    scales: torch.Tensor
    code: torch.Tensor
    nested: torch.Tensor
    nested_code: torch.Tensor
    offset: torch.Tensor
    shape: tuple[int, int]
    first_block: int = 0

    def values(self, dtype: torch.dtype) -> torch.Tensor:
        """Return the values (rows, columns) as bitsandbytes computes them for a product in `dtype`."""
        found: torch.Tensor = bnb.dequantize_4bit(self.packed.reshape(-1, 1), self.state(dtype))
        return found

    def state(self, dtype: torch.dtype) -> Any:
        """Return bitsandbytes' constants of these rows by themselves; `dtype` is that of the values."""
        groups = torch.arange(
            self.first_block, self.first_block + self.scales.numel(), device=self.scales.device
        )
        scales = self.nested_code[self.scales.long()] * self.nested[groups // _NESTED] + self.offset
        return bnb.QuantState(
            absmax=scales,
            shape=torch.Size(self.shape),
            code=self.code,
            blocksize=_BLOCK,
            quant_type="nf4",
            dtype=dtype,
        )


class PackedWeight(MatrixStack, BaseTunerLayer):
    """Matrices (experts, rows, columns) of one parameter, each made of `Nf4Rows`; or one matrix, if there is one expert.

    With an adapter, a product adds its low-rank update (LoRA, Hu et al. 2021), DoRA's with its magnitudes. Each part of a
    matrix has factors of its own, because it is a linear layer of its own in the weight files.
    """

    def __init__(self, parameter: PackedParameter, parts: Sequence[Sequence[Nf4Rows]]) -> None:
        """`parts` has for each expert the rows in order."""
        super().__init__(parameter)
        self.parts = parts
        self.parts_of_matrix = len({part.first for part in parameter.parts})
        self.lora_A = torch.nn.ParameterDict()
        self.lora_B = torch.nn.ParameterDict()
        self.lora_magnitude_vector = torch.nn.ParameterDict()
        self.scaling = 0.0
        self.dropout = 0.0
        self._adapted = False
        self._rows = {name: ParameterRows() for name in ("lora_A", "lora_B", "lora_magnitude_vector")}

    @property
    def dtype(self) -> torch.dtype:
        """The type that the matrices have for a product; peft asks for it."""
        return torch.float32

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return self.rows(0)[0].packed.device

    @property
    def nbytes(self) -> int:
        """Bytes of the 4-bit weights, without their scales."""
        return sum(rows.packed.numel() for expert in range(len(self)) for rows in self.rows(expert))

    def rows(self, expert: int) -> Sequence[Nf4Rows]:
        """Return the rows of an expert's matrix in order."""
        return self.parts[expert]

    def enable_adapters(self, enabled: bool) -> None:  # noqa: FBT001 -- peft's signature
        """Let products have the adapter's update, or not; peft calls it for the whole model."""
        self._adapted = enabled and bool(self.lora_A)

    def add_adapter(self, lora: Lora, generator: torch.Generator | None = None) -> None:
        """Add an adapter that changes nothing yet. Its weights are float32, as `stages.train.master_weights` says."""
        parameter, count = self.parameter, self.parts_of_matrix
        rows = parameter.rows // count
        inputs, outputs = (rows, parameter.columns) if parameter.transposed else (parameter.columns, rows)
        shape = (parameter.experts, count)
        a = torch.empty(*shape, lora.rank, inputs)
        # As in peft: uniform, with the bound of a linear layer's initial values.
        bound = math.sqrt(1 / inputs)
        a.uniform_(-bound, bound, generator=generator)
        self.lora_A[_ADAPTER] = torch.nn.Parameter(a.to(self.device))
        self.lora_B[_ADAPTER] = torch.nn.Parameter(
            torch.zeros(*shape, outputs, lora.rank, device=self.device)
        )
        root = math.sqrt(lora.rank) if lora.variant == "RankStabilized" else lora.rank
        self.scaling = lora.alpha / root
        self.dropout = lora.dropout
        self._adapted = True
        if lora.variant == "DoRA":
            norms = [
                [self._norms(expert, part) for part in range(count)] for expert in range(parameter.experts)
            ]
            self.lora_magnitude_vector[_ADAPTER] = torch.nn.Parameter(
                torch.stack([torch.stack(one) for one in norms])
            )

    def values(self, expert: int, dtype: torch.dtype) -> torch.Tensor:
        """Return the matrix (rows, columns) of an expert without an update."""
        parts = [rows.values(dtype) for rows in self.rows(expert)]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def product(self, inputs: torch.Tensor, expert: int, *, turned: bool) -> torch.Tensor:
        """Return inputs (..., in) times the matrix of an expert, or its transpose if `turned`, with the update."""
        base: torch.Tensor = _Product.apply(inputs, self, expert, turned)
        if not self._adapted or inputs.numel() == 0:
            return base
        if turned == self.parameter.transposed:
            raise TypeError(f"{self.parameter.name} must be multiplied from the other side for its adapter")
        return self._with_update(inputs, base, expert)

    def factors(self) -> dict[str, tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]]:
        """Return A (rank, in), B (out, rank) and DoRA's magnitudes (out) of each part, by the part's name among the modules.

        A part that holds all experts has a leading axis for them.
        """
        a, b = self.lora_A[_ADAPTER].detach(), self.lora_B[_ADAPTER].detach()
        magnitude = self.lora_magnitude_vector[_ADAPTER].detach() if self.lora_magnitude_vector else None
        found = {}
        for part in self.parameter.parts:
            row = part.first // (self.parameter.rows // self.parts_of_matrix)
            place: Any = (slice(None) if part.expert is None else part.expert, row)
            if self.parameter.is_conv1d:
                place = (0, row)
            found[part.module] = (a[place], b[place], None if magnitude is None else magnitude[place])
        return found

    def _with_update(self, inputs: torch.Tensor, base: torch.Tensor, expert: int) -> torch.Tensor:
        drops = self.training and self.dropout > 0
        dropped = functional.dropout(inputs, self.dropout) if drops else inputs
        a, b = self._factor("lora_A", expert), self._factor("lora_B", expert)
        parts = []
        for part in range(a.shape[0]):
            low = functional.linear(dropped, a[part].to(inputs.dtype))
            parts.append(functional.linear(low, b[part].to(inputs.dtype)) * self.scaling)
        added = parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)
        changed: torch.Tensor = base + added
        if self.lora_magnitude_vector:
            norms = torch.cat([self._norms(expert, part) for part in range(a.shape[0])])
            factor = self._factor("lora_magnitude_vector", expert).flatten() / norms
            # As peft does, DoRA rescales what dropout left if there is any.
            rest = _Product.apply(dropped, self, expert, not self.parameter.transposed) if drops else base
            changed = base + (factor - 1) * rest + factor * added
        return changed.to(base.dtype)

    def _factor(self, name: str, expert: int) -> torch.Tensor:
        return self._rows[name].row(getattr(self, name)[_ADAPTER], expert)

    @torch.no_grad()
    def _norms(self, expert: int, part: int) -> torch.Tensor:
        """Return the norm of each output's weights with their update, in float32."""
        weight = self.rows(expert)[part].values(torch.float32)
        weight = weight.T.contiguous() if self.parameter.transposed else weight
        a, b = self.lora_A[_ADAPTER][expert, part], self.lora_B[_ADAPTER][expert, part]
        norms: torch.Tensor = torch.linalg.vector_norm(weight.addmm_(b, a, alpha=self.scaling), dim=1)
        return norms


class _Product(torch.autograd.Function):
    """A product with a frozen matrix, which is unpacked again for the gradient instead of being kept."""

    @staticmethod
    def forward(
        ctx: Any,
        inputs: torch.Tensor,
        weight: PackedWeight,
        expert: int,
        turned: bool,  # noqa: FBT001 -- autograd passes no names
    ) -> torch.Tensor:
        ctx.weight, ctx.expert, ctx.turned = weight, expert, turned
        matrix = weight.values(expert, inputs.dtype)
        found: torch.Tensor = functional.linear(inputs, matrix) if turned else inputs @ matrix
        return found

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        matrix = ctx.weight.values(ctx.expert, gradient.dtype)
        found = gradient @ matrix if ctx.turned else functional.linear(gradient, matrix)
        return found, None, None, None


def packed_adapters(model: Any) -> dict[str, torch.nn.Parameter]:
    """Return the adapter's weights on packed parameters, by peft's names in a checkpoint."""
    return {
        f"{name}.{own.removesuffix(f'.{_ADAPTER}')}": parameter
        for name, weight in packed_weights(model).items()
        for own, parameter in weight.named_parameters()
        if own.startswith("lora_")
    }


def packed_weights(model: Any) -> dict[str, PackedWeight]:
    """Return the packed parameters of a loaded model by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, PackedWeight)}
