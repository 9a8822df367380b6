"""What ranks tell the process that has launched them."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from finetune_trainer.errors import Reason
from finetune_trainer.stages.train.ranks.channel import (
    Channel,
    Failure,
    Listening,
    RankLog,
    RankReporter,
)
from finetune_trainer.telemetry.reporter import NullReporter


class _Recorder(NullReporter):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Any] = []

    def update(self, activity: str, step: int, total: int | None, **numbers: Any) -> None:
        self.seen.append((activity, step, total, numbers))

    def measure(self, **numbers: Any) -> None:
        self.seen.append(numbers)


def test_the_progress_of_the_first_rank_is_that_of_the_stage() -> None:
    recorder = _Recorder()
    with Listening(recorder) as listening:
        progress = RankReporter(Channel(listening.address, 0))
        progress.update("Training", 3, 9, loss=0.5)
        progress.measure(steps=3)
        progress._channel.close()
    assert recorder.seen == [("Training", 3, 9, {"loss": 0.5}), {"steps": 3}]


def test_ends_are_known_by_rank_and_a_rank_that_was_killed_has_none() -> None:
    failure = Failure(Reason.NON_FINITE_LOSS, "no number")
    with Listening(_Recorder()) as listening:
        channels = [Channel(listening.address, rank) for rank in range(3)]
        channels[0].send("result", {"steps": 4})
        channels[2].send("failure", failure)
        for channel in channels:
            channel.close()
    assert listening.ends.results == {0: {"steps": 4}}
    assert listening.ends.failures == {2: failure}


def test_log_lines_of_other_ranks_name_their_rank(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO), Listening(_Recorder()) as listening:
        for rank in (0, 3):
            channel = Channel(listening.address, rank)
            handler = RankLog(channel, rank)
            handler.setFormatter(logging.Formatter("%(message)s"))
            handler.handle(logging.makeLogRecord({"name": "a", "levelno": 30, "msg": "%d %%", "args": (5,)}))
            channel.close()
    assert sorted(record.getMessage() for record in caplog.records if record.name == "a") == [
        "5 %",
        "rank 3: 5 %",
    ]


def test_a_stranger_without_the_key_is_not_heard() -> None:
    with Listening(_Recorder()) as listening:
        address = type(listening.address)(listening.address.path, b"wrong")
        with pytest.raises(Exception, match="digest"):
            Channel(address, 0)
        channel = Channel(listening.address, 1)
        channel.send("result", None)
        channel.close()
    assert listening.ends.results == {1: None}
