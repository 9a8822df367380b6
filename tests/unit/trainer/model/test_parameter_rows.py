"""Rows of a parameter against plain indexing."""

from __future__ import annotations

import copy
from typing import Any

import torch
from finetune_trainer.model.parameter_rows import ParameterRows
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

ROWS, WIDTH = 32, 24


class BytesWritten(TorchDispatchMode):
    """Counts the bytes of all results."""

    bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        if isinstance(found, torch.Tensor):
            self.bytes += found.numel() * found.element_size()
        return found


def bytes_of_backward(loss: torch.Tensor) -> int:
    """Return the bytes of all tensors that the backward pass makes."""
    # Its constructor has no types.
    mode: Any = BytesWritten
    with mode() as written:
        loss.backward()
    return int(written.bytes)


def parameter() -> torch.nn.Parameter:
    return torch.nn.Parameter(torch.randn(ROWS, WIDTH, generator=torch.Generator().manual_seed(1)))


def weigh(rows: Any, places: range = range(ROWS)) -> torch.Tensor:
    """Return a value in which each row has a weight of its own; `rows` returns a row by its place."""
    total = torch.zeros(())
    for place in places:
        total = total + (place + 1) * rows(place).pow(2).sum()
    return total


def gradient(value: torch.nn.Parameter) -> torch.Tensor:
    found, value.grad = value.grad, None
    assert found is not None
    return found


def test_rows_and_gradients_are_those_of_an_index() -> None:
    value, rows = parameter(), ParameterRows()
    for places in (range(ROWS), range(3, ROWS, 5)):
        known = weigh(lambda place: value[place], places)
        known.backward()
        expected = gradient(value)
        found = weigh(lambda place: rows.row(value, place), places)
        found.backward()
        assert torch.equal(found, known)
        assert torch.equal(gradient(value), expected)


def test_all_rows_cost_one_gradient() -> None:
    value, rows = parameter(), ParameterRows()
    found = bytes_of_backward(weigh(lambda place: rows.row(value, place)))
    by_index = bytes_of_backward(weigh(lambda place: value[place]))
    assert found < 10 * value.nbytes < ROWS * value.nbytes < by_index


def test_a_pass_adds_to_the_gradient_of_the_pass_before() -> None:
    value, rows = parameter(), ParameterRows()
    weigh(lambda place: rows.row(value, place)).backward()
    once = value.grad
    assert once is not None
    once = once.clone()
    weigh(lambda place: rows.row(value, place)).backward()
    assert torch.equal(gradient(value), 2 * once)


def test_the_gradient_of_a_layer_is_complete_before_the_layer_before_it_runs() -> None:
    first, second = (torch.nn.Parameter(torch.ones(ROWS)) for _ in range(2))
    rows = ParameterRows(), ParameterRows()
    order: list[str] = []
    second.register_post_accumulate_grad_hook(lambda _value: order.append("second"))
    for _ in range(3):
        between = sum((rows[0].row(first, place) for place in range(ROWS)), torch.zeros(()))
        between.register_hook(lambda _gradient: order.append("between"))
        sum((between * rows[1].row(second, place) for place in range(ROWS)), torch.zeros(())).backward()
    assert order == ["second", "between"] * 3


def test_a_step_of_the_optimizer_changes_the_rows() -> None:
    value, rows = parameter(), ParameterRows()
    optimizer = torch.optim.SGD([value], lr=0.1)
    for _ in range(3):
        loss = weigh(lambda place: rows.row(value, place))
        assert torch.equal(loss, weigh(lambda place: value[place]))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def test_values_that_are_written_past_autograd_are_seen() -> None:
    value, rows = parameter(), ParameterRows()
    rows.row(value, 0)
    value.data.fill_(2)
    assert rows.row(value, 1).tolist() == [2] * WIDTH
    value.data = torch.full((ROWS, WIDTH), 3.0)
    row = rows.row(value, 1)
    assert row.tolist() == [3] * WIDTH
    row.sum().backward()
    assert gradient(value).sum() == WIDTH


def test_another_parameter_gets_its_own_gradient() -> None:
    value, rows = parameter(), ParameterRows()
    rows.row(value, 0).sum().backward()
    other = torch.nn.Parameter(value.detach())
    rows.row(other, 0).sum().backward()
    assert gradient(other).sum() == gradient(value).sum() == WIDTH


def test_rows_work_without_gradients_and_again_with_them() -> None:
    value, rows = parameter(), ParameterRows()
    with torch.no_grad():
        assert rows.row(value, 2).grad_fn is None
    with torch.inference_mode():
        assert torch.equal(rows.row(value, 2), value[2])
    assert rows.row(value, 2).grad_fn is not None
    frozen = torch.nn.Parameter(value.detach().clone(), requires_grad=False)
    assert torch.equal(rows.row(frozen, 2), value[2])


def test_a_recomputed_pass_has_the_same_gradient() -> None:
    value, rows = parameter(), ParameterRows()
    weigh(lambda place: rows.row(value, place)).backward()
    expected = gradient(value)
    for _ in range(2):
        checkpoint(lambda: weigh(lambda place: rows.row(value, place)), use_reentrant=False).backward()
        assert torch.equal(gradient(value), expected)


def test_a_copy_has_rows_of_its_own() -> None:
    value, rows = parameter(), ParameterRows()
    rows.row(value, 0)
    other = copy.deepcopy(rows)
    copied = copy.deepcopy(value)
    other.row(copied, 0).sum().backward()
    assert value.grad is None
    assert gradient(copied).sum() == WIDTH
