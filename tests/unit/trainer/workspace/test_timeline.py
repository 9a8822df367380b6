from __future__ import annotations

from pathlib import Path

from finetune_trainer.workspace.layout import WorkspaceLayout
from finetune_trainer.workspace.timeline import (
    MAXIMUM_ENTRIES,
    Entry,
    begun,
    ended,
    joined,
    read_timeline,
    write_timeline,
)


def test_an_attempt_gets_its_end_and_a_lost_one_keeps_none(tmp_path: Path) -> None:
    entries = begun([], "Train", 0, "t0")
    entries = begun(entries, "Train", 1, "t1")
    entries = ended(entries, "Train", 1, {"completionTime": "t2", "outcome": "Succeeded"})
    assert entries == [
        {"stage": "Train", "attempt": 0, "startTime": "t0"},
        {"stage": "Train", "attempt": 1, "startTime": "t1", "completionTime": "t2", "outcome": "Succeeded"},
    ]
    layout = WorkspaceLayout(tmp_path)
    write_timeline(layout, entries)
    assert read_timeline(layout) == entries


def test_the_end_belongs_to_the_newest_start_of_the_attempt() -> None:
    """`finetune run` calls every attempt 0."""
    entries = begun(begun([], "Train", 0, "t0"), "Train", 0, "t1")
    assert [entry.get("outcome") for entry in ended(entries, "Train", 0, {"outcome": "Failed"})] == [
        None,
        "Failed",
    ]
    assert ended(entries, "Merge", 0, {"outcome": "Failed"}) == entries


def test_a_job_that_is_interrupted_forever_keeps_the_newest_attempts() -> None:
    entries: list[Entry] = []
    for number in range(MAXIMUM_ENTRIES + 3):
        entries = begun(entries, "Train", number, "t")
    assert len(entries) == MAXIMUM_ENTRIES
    assert entries[-1]["attempt"] == MAXIMUM_ENTRIES + 2


def test_a_missing_or_broken_file_is_an_empty_timeline(tmp_path: Path) -> None:
    layout = WorkspaceLayout(tmp_path)
    assert read_timeline(layout) == []
    for content in ("{", "{}", '[1, {"stage": "Train"}]'):
        layout.timeline.write_text(content)
        assert read_timeline(layout) == []


def test_ends_that_only_the_operator_knows_are_joined() -> None:
    entries = [
        {"stage": "Prepare", "attempt": 0, "startTime": "1", "outcome": "Succeeded"},
        {"stage": "Train", "attempt": 0, "startTime": "2"},
    ]
    attempts = [
        {"stage": "Train", "attempt": 1, "completionTime": "4", "outcome": "Failed", "reason": "PodStuck"},
        {"stage": "Train", "attempt": 0, "startTime": "0", "completionTime": "3", "outcome": "Failed"},
        {"stage": "Prepare", "attempt": 0, "startTime": "0", "outcome": "Interrupted"},
    ]
    found = joined(entries, attempts)
    assert [(each["stage"], each["attempt"], each["outcome"]) for each in found] == [
        ("Prepare", 0, "Succeeded"),
        ("Train", 0, "Failed"),
        ("Train", 1, "Failed"),
    ]
    assert found[1]["startTime"] == "2", "the trainer's own time is more exact"
