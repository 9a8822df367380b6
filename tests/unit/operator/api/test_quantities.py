from __future__ import annotations

import math
from decimal import Decimal
from fractions import Fraction

import pytest
from finetune_operator.api.quantities import (
    GIB,
    binary_size,
    format_bytes,
    parse_bytes,
    parse_count,
    parse_quantity,
    whole_gibibytes,
)
from hypothesis import given
from hypothesis import strategies as st
from kubernetes.utils.quantity import parse_quantity as judge

SUFFIXES = ["", "n", "u", "m", *"kMGTPE", *(f"{letter}i" for letter in "KMGTPE")]
DIGITS = st.text("0123456789", min_size=1, max_size=9)
NUMBERS = st.one_of(
    DIGITS,
    st.builds("{}.{}".format, DIGITS, DIGITS),
    st.builds("{}.".format, DIGITS),
    st.builds(".{}".format, DIGITS),
)
SIGNED = st.builds("{}{}".format, st.sampled_from(["", "+", "-"]), NUMBERS)
EXPONENTS = st.builds(
    "{}{}{}".format, st.sampled_from("eE"), st.sampled_from(["", "+", "-"]), st.integers(0, 12)
)
LAWFUL = st.builds("{}{}".format, SIGNED, st.sampled_from(SUFFIXES) | EXPONENTS)
"""Every form of the grammar of apimachinery's quantity.go, with up to nine digits on both sides."""


def judged(text: str) -> Fraction:
    """The value by the Kubernetes client, with the bounds that apimachinery documents."""
    exact = Fraction(Decimal(judge(text)))
    size = min(Fraction(math.ceil(abs(exact) * 10**9), 10**9), Fraction(2**63 - 1))
    return -size if exact < 0 else size


@given(LAWFUL)
def test_every_lawful_quantity_has_the_value_that_kubernetes_gives_it(text: str) -> None:
    assert parse_quantity(text) == judged(text)


@given(st.text("0123456789.+-eEinumkKMGTP ", max_size=6))
def test_no_other_text_is_read_with_another_value(text: str) -> None:
    try:
        value = parse_quantity(text)
    except ValueError:
        return
    assert value == judged(text)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("+1", Fraction(1)),
        ("-2", Fraction(-2)),
        ("500m", Fraction(1, 2)),
        (".5Gi", Fraction(GIB, 2)),
        ("1.", Fraction(1)),
        ("1E", Fraction(10**18)),
        ("1E2", Fraction(100)),
        ("1e+3", Fraction(1000)),
        ("1E-3", Fraction(1, 1000)),
        ("123456789012.123456789", Fraction(123456789012123456789, 10**9)),
    ],
)
def test_each_form_of_a_quantity_is_read(text: str, value: Fraction) -> None:
    assert parse_quantity(text) == value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0.1n", Fraction(1, 10**9)),
        ("-0.1n", Fraction(-1, 10**9)),
        ("1e-999999999999", Fraction(1, 10**9)),
        ("16Ei", Fraction(2**63 - 1)),
        ("-16Ei", Fraction(1 - 2**63)),
        ("1e999999999999", Fraction(2**63 - 1)),
        ("0e999999999999", Fraction(0)),
    ],
)
def test_values_are_rounded_away_from_zero_and_bounded(text: str, value: Fraction) -> None:
    assert parse_quantity(text) == value


@pytest.mark.parametrize(
    "text",
    [
        *("", ".", "Gi", "1 Gi", " 1", "1\n", "1gb", "1GiB", "1e", "1e1.5", "0x10", "1.2.3", "1_0", "--1"),
        *("1K", "1ki", "1mi", "1ei", "inf", "nan", "\u0661", "9" * 300),
    ],
)
def test_a_text_that_is_not_a_quantity_is_rejected(text: str) -> None:
    with pytest.raises(ValueError, match="a quantity must be a number"):
        parse_quantity(text)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("16Gi", 16 * GIB),
        ("1.5Gi", 3 * GIB // 2),
        ("20G", 20 * 10**9),
        ("1e9", 10**9),
        ("2E2", 200),
        ("1E", 10**18),
        ("500m", 1),
        ("0", 0),
        (".5Ki", 512),
        ("123", 123),
    ],
)
def test_bytes_are_read_and_rounded_up(text: str, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["-1", "-1n"])
def test_negative_bytes_are_rejected(text: str) -> None:
    with pytest.raises(ValueError, match="at least 0"):
        parse_bytes(text)


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("8", 8),
        ("2k", 2000),
        ("1e1", 10),
        ("1000m", 1),
        ("0", 0),
        ("500m", 0),
        ("-1", 0),
        ("x", 0),
        (None, 0),
    ],
)
def test_a_count_is_a_whole_number_of_devices_or_zero(text: str | None, count: int) -> None:
    assert parse_count(text) == count


@given(st.integers(0, 2**50))
def test_a_formatted_size_is_the_least_whole_mebibyte_that_holds_it(size: int) -> None:
    assert 0 <= parse_bytes(format_bytes(size)) - size < 2**20


@given(st.integers(0, 2**50))
def test_whole_gibibytes_are_the_least_that_hold_the_size(size: int) -> None:
    text = whole_gibibytes(size)
    assert text.endswith("Gi") or size == 0
    assert 0 <= parse_bytes(text) - size < GIB


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0 MiB"), (50 << 20, "50 MiB"), (3 << 29, "1.50 GiB"), (22 << 30, "22.0 GiB")]
)
def test_sizes_are_written_with_three_digits(size: int, text: str) -> None:
    assert binary_size(size) == text
