"""Rows of a parameter, each used by itself, whose gradient is made once."""

from __future__ import annotations

import weakref
from typing import Any

import torch


class ParameterRows:
    """Gives rows of a parameter that share one node of autograd.

    The gradient of `parameter[row]` is as large as the parameter: all rows but one are zeros. With a product for each of a
    hundred experts, a backward pass would write and add a hundred of them. The rows of one `unbind` have one gradient.
    """

    def __init__(self) -> None:
        self._parameter: torch.Tensor | None = None
        self._values: tuple[int, int] | None = None
        self._rows: tuple[torch.Tensor, ...] = ()

    def row(self, parameter: torch.Tensor, place: int) -> torch.Tensor:
        """Return `parameter[place]`."""
        if not (torch.is_grad_enabled() and parameter.requires_grad):
            return parameter[place]
        # After a change of the parameter, autograd would derive an older view anew, as an index does.
        values = (parameter.untyped_storage()._cdata, parameter._version)  # noqa: SLF001 -- torch has no other name for them
        if not self._rows or parameter is not self._parameter or values != self._values:
            self._parameter, self._values, self._rows = parameter, values, _rows_of(parameter, self)
        return self._rows[place]

    def forget(self) -> None:
        """Take new rows for the next pass."""
        self._parameter, self._values, self._rows = None, None, ()

    def __reduce__(self) -> tuple[type[ParameterRows], tuple[()]]:
        """Copy nothing, because the copy of a model has parameters of its own."""
        return ParameterRows, ()


def _rows_of(parameter: torch.Tensor, owner: ParameterRows) -> tuple[torch.Tensor, ...]:
    """Return all rows, which their `owner` forgets after their backward pass.

    Autograd runs a node before those that are older. In a later pass these rows would be the oldest of all layers, so the
    gradients of all layers would wait for the end of the pass.
    """
    rows = parameter.unbind()
    known = weakref.ref(owner)

    def forget(_inputs: Any, _outputs: Any) -> None:
        if (found := known()) is not None:
            found.forget()

    node = rows[0].grad_fn
    if node is None:
        raise TypeError("the rows of a trained parameter must have a gradient, found none")
    node.register_hook(forget)
    return rows
