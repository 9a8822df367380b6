from __future__ import annotations

import pytest
from finetune_cli.watch.history import KEPT, LossHistory, sparkline

from tests.support.cli_jobs import training


def test_losses_are_collected_by_step() -> None:
    history = LossHistory()
    for step, loss in ((1, "2.0"), (2, "1.0"), (2, "1.0"), (3, "0.5")):
        history.add(training(step=step, loss=loss))
    assert list(history.losses.values()) == [2.0, 1.0, 0.5]


def test_a_resumed_attempt_replaces_the_steps_that_it_repeats() -> None:
    history = LossHistory()
    for step, loss in ((10, "2.0"), (20, "1.0"), (15, "1.5")):
        history.add(training(step=step, loss=loss))
    assert history.losses == {10: 2.0, 15: 1.5}


@pytest.mark.parametrize("loss", ["NaN", "Infinity", "", "x"])
def test_a_loss_that_is_no_number_is_left_out(loss: str) -> None:
    history = LossHistory()
    history.add(training(loss=loss))
    assert history.losses == {}


def test_progress_of_other_activities_has_no_loss() -> None:
    history = LossHistory()
    job = training()
    job["status"]["progress"]["activity"] = "EvaluatingTuned"
    history.add(job)
    assert history.losses == {}


def test_a_long_run_keeps_a_bounded_number_of_losses() -> None:
    history = LossHistory(dict.fromkeys(range(KEPT), 1.0))
    history.add(training(step=KEPT + 1))
    assert len(history.losses) == KEPT


@pytest.mark.parametrize(
    ("values", "width", "blocks", "text"),
    [
        ([3.0, 2.0, 1.0], 10, True, "█▅▁"),
        ([3.0, 2.0, 1.0], 10, False, "#-_"),
        ([1.0, 1.0], 10, True, "▁▁"),
        ([4.0, 4.0, 1.0, 1.0], 2, True, "█▁"),
        ([], 10, True, ""),
        ([1.0], 0, True, ""),
    ],
)
def test_a_sparkline_has_one_character_for_each_value_or_mean(
    values: list[float], width: int, *, blocks: bool, text: str
) -> None:
    assert sparkline(values, width, blocks=blocks) == text


def test_a_sparkline_of_many_values_has_exactly_its_width() -> None:
    assert len(sparkline([float(value) for value in range(1000)], 48, blocks=True)) == 48
