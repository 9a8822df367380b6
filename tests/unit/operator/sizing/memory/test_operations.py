"""Single operations on the meter: what a forward pass saves, its backward pass frees."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from finetune_operator.sizing.memory.family import Norm
from finetune_operator.sizing.memory.meter import Kind, Meter
from finetune_operator.sizing.memory.operations import (
    Matrix,
    NormSizes,
    matrix_backward,
    matrix_forward,
    norm_backward,
    norm_forward,
)

PLAIN = Matrix(
    inputs=1000,
    outputs=300,
    adapted=False,
    low_rank=10,
    copy=0,
    dropped=0,
    unpacked=50_000,
    constants=700,
    unpacked_forward=False,
)


def test_a_matrix_without_adapter_allocates_only_its_output() -> None:
    meter = Meter()
    matrix_forward(meter, PLAIN, saving=True)
    assert meter.now == [0, 300, 0, 0]
    assert meter.peak == 300


def test_a_long_product_unpacks_the_matrix_first() -> None:
    meter = Meter()
    matrix_forward(meter, replace(PLAIN, unpacked_forward=True), saving=True)
    assert meter.now == [0, 300, 0, 0]
    assert meter.peak == 700 + 50_000 + 300


def test_the_backward_pass_always_unpacks_the_matrix() -> None:
    meter = Meter()
    meter.alloc(300)
    matrix_backward(meter, PLAIN)
    assert meter.now == [0, 1000, 0, 0]
    assert meter.at_peak[Kind.UNPACKED] >= 50_000


@pytest.mark.parametrize(
    ("changes", "saved"),
    [
        ({}, 10),
        ({"copy": 500}, 510),
        ({"factor_in": 40, "factor_out": 60}, 110),
        ({"dropped": 1500}, 1510),
        ({"magnitudes": 9000}, 10 + 2 * 300),
    ],
)
def test_an_adapter_saves_its_tensors_and_the_backward_pass_frees_them(
    changes: dict[str, Any], saved: int
) -> None:
    matrix = replace(PLAIN, adapted=True, **changes)
    assert matrix.saved == saved
    meter = Meter()
    matrix_forward(meter, matrix, saving=True)
    assert meter.now == [saved, 300, 0, 0]
    matrix_backward(meter, matrix)
    assert meter.now == [0, 1000, 0, 0]


def test_without_saving_only_the_output_stays() -> None:
    meter = Meter()
    matrix_forward(meter, replace(PLAIN, adapted=True, copy=500, dropped=1500, magnitudes=9000), saving=False)
    assert meter.now == [0, 300, 0, 0]


def test_an_adapter_saves_its_very_input_unless_it_reads_a_copy_or_dropout() -> None:
    adapted = replace(PLAIN, adapted=True)
    assert adapted.saves_input
    assert not PLAIN.saves_input
    assert not replace(adapted, copy=500).saves_input
    assert not replace(adapted, dropped=1500).saves_input
    assert replace(PLAIN, packed_saves_input=True).saves_input


def test_a_gradient_of_the_same_input_is_added_to_the_first() -> None:
    meter = Meter()
    meter.alloc(1000)
    meter.alloc(300)
    matrix_backward(meter, PLAIN, shared=True)
    assert meter.now == [0, 1000, 0, 0]


def test_a_kept_gradient_of_the_output_stays() -> None:
    meter = Meter()
    meter.alloc(300)
    matrix_backward(meter, PLAIN, keep=True)
    assert meter.now == [0, 1300, 0, 0]


NORMS: list[tuple[Norm, bool]] = [
    ("Rms", True),
    ("Rms", False),
    ("RmsFloat", True),
    ("RmsFloat", False),
    ("LayerFloat", True),
    ("LayerFloat", False),
    # A centered norm keeps two copies, whatever its input.
    ("Centered", True),
    # A layer norm in the model's type never copies its input.
    ("Layer", False),
]


@pytest.mark.parametrize(("kind", "copies"), NORMS)
def test_a_norm_frees_in_the_backward_pass_what_it_saved(kind: Norm, copies: bool) -> None:  # noqa: FBT001 -- a case
    # Another norm that copies nothing works on float32 already: both widths are one.
    narrow = 200 if copies or kind == "Layer" else 400
    norm = NormSizes(kind, narrow=narrow, wide=400, copies=copies)
    meter = Meter()
    if not copies:
        meter.alloc(norm.narrow, Kind.SAVED)
    norm_forward(meter, norm, saving=True)
    assert meter.now == [norm.saved, norm.narrow, 0, 0]
    norm_backward(meter, norm)
    assert meter.now == [0, norm.narrow, 0, 0]
