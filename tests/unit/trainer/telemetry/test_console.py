from __future__ import annotations

import io
import logging
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from finetune_trainer.telemetry.console import Console, progress_bar, progress_line
from finetune_trainer.telemetry.snapshot import Snapshot

START = datetime(2026, 1, 31, 10, tzinfo=UTC)
SNAPSHOT = Snapshot("Training", 5, 10, 0.5, None, None, 80.4, None, START + timedelta(seconds=5), START, 0)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_line_names_stage_activity_steps_and_known_measurements() -> None:
    assert progress_line("Train", SNAPSHOT) == "Train Training: 5 of 10, loss 0.5000, 80 tokens/s"
    bare = replace(SNAPSHOT, total=None, loss=None, tokens_per_second=None)
    assert progress_line("Train", bare) == "Train Training: 5"


def test_a_bar_is_at_most_100_columns_wide() -> None:
    bar = progress_bar("Train", SNAPSHOT)
    assert bar.startswith("Train Training:  50%")
    assert len(bar) <= 100


def test_a_terminal_gets_each_activity_on_its_own_line() -> None:
    terminal = Terminal()
    console = Console("Train", terminal)
    console.show(SNAPSHOT, last=False)
    console.show(replace(SNAPSHOT, step=6), last=False)
    console.show(replace(SNAPSHOT, activity="EvaluatingTuned"), last=True)
    console.end_bar()
    console.end_bar()
    lines = terminal.getvalue().split("\n")
    assert [line.count("\r") for line in lines] == [2, 1, 0]


def test_a_log_gets_a_line_for_a_new_activity_and_the_last_snapshot_only(
    caplog: pytest.LogCaptureFixture,
) -> None:
    console = Console("Train", io.StringIO())
    with caplog.at_level(logging.INFO):
        for step in range(10):
            console.show(replace(SNAPSHOT, step=step), last=False)
        console.show(replace(SNAPSHOT, step=10), last=True)
        console.show(replace(SNAPSHOT, activity="EvaluatingTuned"), last=False)
    steps = [record.getMessage().split(",")[0] for record in caplog.records]
    assert steps == ["Train Training: 0 of 10", "Train Training: 10 of 10", "Train EvaluatingTuned: 5 of 10"]
