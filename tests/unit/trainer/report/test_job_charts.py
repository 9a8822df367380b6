from __future__ import annotations

import math

import pytest
from finetune_trainer.report.job_charts import (
    HEIGHT,
    WIDTH,
    curve,
    duration,
    interval_plot,
    memory_bars,
    timeline_bars,
)
from hypothesis import given
from hypothesis import strategies as st

_NUMBERS = st.floats(-1e30, 1e30)


def test_a_falling_loss_goes_from_the_top_left_to_the_bottom_right() -> None:
    plot = curve([{"step": 1, "loss": 4.0}, {"step": 5, "loss": 0.0}], "loss", [{"step": 3, "loss": 2.0}])
    assert plot is not None
    assert plot.line == f"0.0,0.0 {WIDTH:.1f},{HEIGHT:.1f}"
    assert plot.dots == ((WIDTH / 2, HEIGHT / 2, "step 3: 2"),)
    assert [tick.label for tick in plot.y_ticks] == ["0", "1", "2", "3", "4"]
    assert [tick.label for tick in plot.x_ticks] == ["1", "2", "3", "4", "5"]


@pytest.mark.parametrize("values", [(-9e-19, 1e-30), (5e-324, 0.0), (1e30, 1e30), (0.0, 0.0), (-1e30, 1e-30)])
def test_an_axis_has_few_labels_however_small_its_span_is(values: tuple[float, float]) -> None:
    plot = curve([{"step": step, "loss": value} for step, value in enumerate(values)], "loss")
    assert plot is not None
    assert 2 <= len(plot.y_ticks) <= 7


def test_one_point_is_no_curve() -> None:
    assert curve([{"step": 1, "loss": 4.0}, {"step": 2, "loss": None}], "loss") is None


@given(st.lists(_NUMBERS, min_size=2, max_size=5))
def test_every_curve_stays_inside_its_plot(values: list[float]) -> None:
    plot = curve([{"step": step, "loss": value} for step, value in enumerate(values)], "loss")
    assert plot is not None
    for pair in plot.line.split():
        x, y = map(float, pair.split(","))
        assert 0 <= x <= WIDTH
        assert -0.1 <= y <= HEIGHT + 0.1


@given(_NUMBERS, _NUMBERS, _NUMBERS)
def test_the_axis_of_an_interval_contains_zero_and_the_interval(
    low: float, value: float, high: float
) -> None:
    plot = interval_plot(value, (low, high))
    assert plot is not None
    for place in (plot.low, plot.high, plot.value, plot.zero):
        assert -0.1 <= place <= WIDTH + 0.1


def test_an_interval_that_is_not_finite_has_no_plot() -> None:
    assert interval_plot(0.0, (-math.inf, 1.0)) is None


def test_memory_is_drawn_against_the_largest_number() -> None:
    bars = memory_bars({"allocatedBytes": 2**30, "usableBytes": 4 * 2**30, "deviceBytes": None}, {})
    assert [(bar.name, bar.width, bar.text) for bar in bars] == [
        ("tensors", WIDTH / 4, "1.00 GiB"),
        ("all that the device has", WIDTH, "4.00 GiB"),
    ]
    assert memory_bars({}, {}) == ()


def test_attempts_follow_each_other_and_one_without_end_reaches_the_next() -> None:
    bars = timeline_bars(
        [
            {"stage": "Prepare", "attempt": 0, "startTime": "2026-01-01T00:00:00.000Z",
             "completionTime": "2026-01-01T00:00:30.000Z"},
            {"stage": "Train", "attempt": 0, "startTime": "2026-01-01T00:00:30.000Z"},
            {"stage": "Train", "attempt": 1, "startTime": "2026-01-01T00:00:45.000Z",
             "completionTime": "2026-01-01T00:01:00.000Z"},
        ]
    )  # fmt: skip
    assert [(bar.name, bar.x, bar.width) for bar in bars] == [
        ("Prepare 0", 0.0, WIDTH / 2),
        ("Train 0", WIDTH / 2, WIDTH / 4),
        ("Train 1", 3 * WIDTH / 4, WIDTH / 4),
    ]


def test_a_job_with_many_attempts_has_a_plot_of_the_newest() -> None:
    entries = [
        {"stage": "Train", "attempt": number, "startTime": f"2026-01-01T00:{number:02}:00Z"}
        for number in range(50)
    ]
    assert [bar.name for bar in timeline_bars(entries)] == [f"Train {number}" for number in range(30, 50)]


def test_a_timeline_without_readable_times_has_no_bars() -> None:
    entries = [
        {"stage": "Prepare", "attempt": 0, "startTime": text} for text in ("", "x", "2026-01-01T00:00:00")
    ]
    assert timeline_bars(entries) == ()


@pytest.mark.parametrize(("seconds", "text"), [("01.500", "1.5 s"), ("59.000", "59.0 s")])
def test_short_times_are_in_seconds(seconds: str, text: str) -> None:
    entry = {"startTime": "2026-01-01T00:00:00Z", "completionTime": f"2026-01-01T00:00:{seconds}Z"}
    assert duration(entry) == text


def test_long_times_are_in_minutes_and_hours() -> None:
    assert (
        duration({"startTime": "2026-01-01T00:00:00Z", "completionTime": "2026-01-01T00:02:05Z"})
        == "2 min 5 s"
    )
    assert (
        duration({"startTime": "2026-01-01T00:00:00Z", "completionTime": "2026-01-01T05:07:05Z"})
        == "5 h 7 min"
    )
    assert duration({"startTime": "2026-01-01T00:00:00Z"}) == ""


def test_an_estimate_stands_above_what_was_measured() -> None:
    bars = memory_bars(
        {"allocatedBytes": 2**30, "usableBytes": 4 * 2**30}, {"peakBytes": 2 * 2**30, "deviceBytes": 2**31}
    )
    assert [(bar.name, bar.width) for bar in bars] == [
        ("tensors, estimated", WIDTH / 2),
        ("tensors", WIDTH / 4),
        ("in use on the device, estimated", WIDTH / 2),
        ("all that the device has", WIDTH),
    ]
