from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from finetune_trainer.telemetry.snapshot import Snapshot

START = datetime(2026, 1, 31, 10, tzinfo=UTC)
SNAPSHOT = Snapshot(
    "Training", 30, 100, None, None, None, None, None, START + timedelta(seconds=40), START, 10
)


def test_the_end_is_estimated_from_the_steps_of_this_process_only() -> None:
    """20 steps took 40 seconds, so the remaining 70 steps take 140 seconds."""
    assert SNAPSHOT.estimated_completion() == SNAPSHOT.heartbeat + timedelta(seconds=140)


@pytest.mark.parametrize("changes", [{"total": None}, {"step": 10}, {"step": 101}])
def test_without_progress_or_total_no_end_is_estimated(changes: dict[str, int | None]) -> None:
    assert replace(SNAPSHOT, **changes).estimated_completion() is None  # type: ignore[arg-type]  # a table of changes


def test_the_last_step_ends_now() -> None:
    assert replace(SNAPSHOT, step=100).estimated_completion() == SNAPSHOT.heartbeat
