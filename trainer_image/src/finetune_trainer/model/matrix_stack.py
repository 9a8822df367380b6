"""Stands in the place of a parameter of many matrices, whose values exist only while they multiply.

The model's own code goes on to use the parameter. It finds the operations that such code needs: an index, a transpose, and a
product from either side. Everything else raises TypeError.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional

if TYPE_CHECKING:
    from collections.abc import Callable

    from finetune_trainer.model.packed_parameters import PackedParameter

_RIGHT = (torch.matmul, torch.mm, torch.Tensor.matmul, torch.Tensor.mm, torch.Tensor.__matmul__)


class MatrixStack(torch.nn.Module):
    """Matrices (experts, rows, columns) of one parameter, or a single matrix (rows, columns)."""

    def __init__(self, parameter: PackedParameter) -> None:
        super().__init__()
        self.parameter = parameter

    def product(self, inputs: torch.Tensor, expert: int, *, turned: bool) -> torch.Tensor:
        """Return inputs (..., in) times the matrix of an expert, or times its transpose if `turned`."""
        raise NotImplementedError

    @property
    def shape(self) -> torch.Size:
        """The shape of the parameter."""
        matrix = (self.parameter.rows, self.parameter.columns)
        return torch.Size(matrix if self.parameter.is_conv1d else (self.parameter.experts, *matrix))

    def size(self, axis: int | None = None) -> Any:
        """Return the shape, or the length of an axis."""
        return self.shape if axis is None else self.shape[axis]

    def __len__(self) -> int:
        """Return the number of matrices."""
        return self.parameter.experts

    def __getitem__(self, index: Any) -> StackedMatrix:
        """Return the matrix of an expert."""
        return StackedMatrix(self, int(index), turned=False)

    @classmethod
    def __torch_function__(
        cls,
        function: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Multiply all matrices, each with rows of its own (`bmm`), or a single one as `StackedMatrix` does."""
        given = kwargs or {}
        stack = next(value for value in (*args, *given.values()) if isinstance(value, MatrixStack))
        if function in (torch.bmm, torch.Tensor.bmm) and args[1:] == (stack,):
            rows = args[0].unbind(0)
            return torch.stack([stack.product(row, expert, turned=False) for expert, row in enumerate(rows)])
        if not stack.parameter.is_conv1d:
            return NotImplemented
        only = stack[0]
        return StackedMatrix.__torch_function__(
            function,
            types,
            tuple(only if value is stack else value for value in args),
            {name: only if value is stack else value for name, value in given.items()},
        )


class StackedMatrix:
    """One matrix of a stack for a product, or its transpose if `turned`."""

    def __init__(self, stack: MatrixStack, expert: int, *, turned: bool) -> None:
        self._stack, self._expert, self._turned = stack, expert, turned

    @property
    def T(self) -> StackedMatrix:  # noqa: N802 -- torch's name
        """The transpose."""
        return StackedMatrix(self._stack, self._expert, turned=not self._turned)

    def t(self) -> StackedMatrix:
        """Return the transpose."""
        return self.T

    def transpose(self, first: int, second: int) -> StackedMatrix:
        """Return the transpose. Raises ValueError for axes that a matrix does not have."""
        if {first % 2, second % 2} != {0, 1}:
            raise ValueError(f"a matrix must be transposed over its two axes, found {first} and {second}")
        return self.T

    @property
    def shape(self) -> torch.Size:
        """The shape as it multiplies."""
        rows, columns = self._stack.parameter.rows, self._stack.parameter.columns
        return torch.Size((columns, rows) if self._turned else (rows, columns))

    def multiply(self, inputs: torch.Tensor, *, turned: bool) -> torch.Tensor:
        """Return inputs times this matrix, or its transpose if `turned`."""
        return self._stack.product(inputs, self._expert, turned=self._turned != turned)

    @classmethod
    def __torch_function__(
        cls,
        function: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Compute `functional.linear`, `addmm` and products from the right."""
        given = dict(kwargs or {})
        if function is functional.linear:
            inputs, weight = (
                args[0] if args else given["input"],
                args[1] if len(args) > 1 else given["weight"],
            )
            bias = args[2] if len(args) > 2 else given.get("bias")
            found = weight.multiply(inputs, turned=True)
            return found if bias is None else found + bias
        if function is torch.addmm and isinstance(args[2], StackedMatrix):
            return args[0] + args[2].multiply(args[1], turned=False)
        if function in _RIGHT and isinstance(args[1], StackedMatrix):
            return args[1].multiply(args[0], turned=False)
        return NotImplemented


def has_experts(model: Any) -> bool:
    """Return whether a loaded model has experts, so that a token's way depends on its values."""
    return any(
        isinstance(module, MatrixStack) and not module.parameter.is_conv1d for module in model.modules()
    )


def use_own_experts(model: Any) -> None:
    """Let experts compute with the model's own code, which takes one expert after another."""
    for config in {id(part): part for part in (model.config, model.config.get_text_config())}.values():
        # Its setter walks over all modules.
        config._experts_implementation = "eager"  # noqa: SLF001 -- transformers reads it there
