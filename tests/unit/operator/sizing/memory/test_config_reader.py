"""Members of a config, with the defaults and the spellings of its family."""

from __future__ import annotations

from typing import Any

import pytest
from finetune_operator.sizing.memory.config_reader import ConfigReader, ShapeUnknownError
from finetune_operator.sizing.memory.family import Family

FAMILY = Family({"size": 8, "flag": True}, aliases={"size": "extent"}, overrides={"size": "true_size"})


def reader(**config: Any) -> ConfigReader:
    return ConfigReader(config, FAMILY)


@pytest.mark.parametrize(
    ("config", "value"),
    [
        ({}, 8),
        ({"size": 5}, 5),
        ({"extent": 6}, 6),
        ({"size": 5, "extent": 6}, 5),
        ({"size": 5, "true_size": 7}, 7),
        ({"size": None}, None),
        ({"size": None, "extent": 6}, 6),
        ({"true_size": None, "size": 5}, 5),
    ],
)
def test_a_value_is_the_configs_before_the_familys(config: dict[str, Any], value: int | None) -> None:
    assert reader(**config).value("size") == value


@pytest.mark.parametrize("value", [0, -1, True, 1.0, "8", 1 << 40])
def test_a_number_is_whole_and_positive(value: Any) -> None:
    with pytest.raises(ShapeUnknownError, match="size must be a positive whole number"):
        reader(size=value).number("size")


def test_each_kind_of_value_is_checked() -> None:
    found = reader(flag=False, name="silu", rate=0.5, null=None)
    assert (found.flag("flag"), found.flag("other"), found.text("name", "x"), found.text("no", "x")) == (
        False,
        False,
        "silu",
        "x",
    )
    assert (found.real("rate"), found.real("null"), found.optional("null"), found.number("none", 3)) == (
        0.5,
        None,
        None,
        3,
    )
    assert (found.decided("flag"), found.decided(True)) == (False, True)
    wrong = reader(flag="no", name=3, rate=True)
    for read in (lambda: wrong.flag("flag"), lambda: wrong.text("name", ""), lambda: wrong.real("rate")):
        with pytest.raises(ShapeUnknownError, match=r"config\.json's"):
            read()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 10**30])
def test_a_number_that_is_not_finite_or_absurd_is_none(value: float) -> None:
    with pytest.raises(ShapeUnknownError, match="rate must be a number"):
        reader(rate=value).real("rate")


def test_a_long_value_is_shown_by_its_beginning() -> None:
    with pytest.raises(ShapeUnknownError) as caught:
        reader(size="x" * 1000).number("size")
    assert len(str(caught.value)) < 200
