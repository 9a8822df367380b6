from __future__ import annotations

import io
import json
import logging
import os
import socket
import statistics
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from finetune_trainer.contract.identity import Identity
from finetune_trainer.telemetry import background
from finetune_trainer.telemetry.reporter import Reporter
from finetune_trainer.telemetry.server import PORTS_TRIED
from jsonschema import Draft202012Validator
from prometheus_client.parser import text_string_to_metric_families

from tests.support.repository import ROOT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

IDENTITY = Identity("uid-1", "Train", 2)
SCHEMA = json.loads((ROOT / "contract" / "progress.schema.json").read_text())


@pytest.fixture
def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def reporter(tmp_path: Path, free_port: int) -> Iterator[Reporter]:
    reporter = Reporter(
        IDENTITY, progress_path=tmp_path / "progress.json", port=free_port, stream=io.StringIO()
    )
    yield reporter
    reporter.close()


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def get(port: int | None, path: str) -> bytes:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as response:
        body: bytes = response.read()
    return body


def test_progress_is_served_and_follows_the_contract(reporter: Reporter) -> None:
    Draft202012Validator(SCHEMA).validate(json.loads(get(reporter.port, "/progress")))
    reporter.update(
        "Training", 3, 10, loss=1.5, learning_rate=2e-4, tokens_per_second=80.0, peak_memory_bytes=7
    )
    reporter.update(
        "Training",
        4,
        10,
        loss=1.25,
        learning_rate=2e-4,
        gradient_norm=0.5,
        tokens_per_second=80.0,
        peak_memory_bytes=7,
    )
    document = json.loads(get(reporter.port, "/progress"))
    Draft202012Validator(SCHEMA).validate(document)
    assert (document["uid"], document["step"], document["loss"]) == ("uid-1", 4, 1.25)
    assert document["estimatedCompletionTime"] >= document["heartbeatTime"]


def test_metrics_are_served_in_prometheus_format(reporter: Reporter) -> None:
    reporter.update("Training", 4, 10, loss=1.25)
    families = text_string_to_metric_families(get(reporter.port, "/metrics").decode())
    samples: dict[str, Any] = {family.name: family.samples[0] for family in families}
    assert samples["finetune_trainer_loss"].value == 1.25
    assert samples["finetune_trainer_step"].labels == {"stage": "Train", "activity": "Training"}
    assert "finetune_trainer_learning_rate" not in samples


def test_other_paths_are_not_found(reporter: Reporter) -> None:
    with pytest.raises(urllib.error.HTTPError) as caught:
        get(reporter.port, "/secrets")
    with caught.value as answer:
        assert answer.code == 404


def test_numbers_that_are_not_finite_are_unknown(reporter: Reporter) -> None:
    nan = float("nan")
    reporter.update(
        "Training", 1, 10, loss=nan, learning_rate=float("inf"), gradient_norm=nan, tokens_per_second=-nan
    )
    document = json.loads(get(reporter.port, "/progress"), parse_constant=pytest.fail)
    numbers = [document[name] for name in ("loss", "learningRate", "gradientNorm", "tokensPerSecond")]
    assert numbers == [None] * 4
    assert b"NaN" not in get(reporter.port, "/metrics")


def test_the_file_contains_the_last_state_after_close(tmp_path: Path) -> None:
    path = tmp_path / "progress.json"
    reporter = Reporter(IDENTITY, progress_path=path, stream=io.StringIO())
    for step in range(100):
        reporter.update("Training", step, 100)
    reporter.close()
    assert json.loads(path.read_text())["step"] == 99


def test_every_number_of_a_training_step_is_a_metric(reporter: Reporter) -> None:
    reporter.update(
        "Training",
        4,
        10,
        loss=1.25,
        learning_rate=2e-4,
        gradient_norm=0.5,
        tokens_per_second=80.0,
        peak_memory_bytes=7,
    )
    families = text_string_to_metric_families(get(reporter.port, "/metrics").decode())
    found = {family.name.removeprefix("finetune_trainer_"): family.samples[0].value for family in families}
    found.pop("heartbeat_timestamp_seconds")
    assert found == {
        "step": 4,
        "total_steps": 10,
        "loss": 1.25,
        "learning_rate": 2e-4,
        "gradient_norm": 0.5,
        "tokens_per_second": 80,
        "peak_memory_bytes": 7,
    }


def test_a_disk_that_hangs_delays_neither_a_step_nor_the_scrapes(tmp_path: Path, free_port: int) -> None:
    """A pipe that nobody reads lets every write to it hang, as a dead network disk does."""
    pipe = tmp_path / f".progress.json.{os.getpid()}.tmp"
    os.mkfifo(pipe)
    reporter = Reporter(
        IDENTITY, progress_path=tmp_path / "progress.json", port=free_port, stream=io.StringIO()
    )
    took = []
    for step in range(200):
        began = time.thread_time()
        reporter.update("Training", step, 200)
        took.append(time.thread_time() - began)
    assert json.loads(get(reporter.port, "/progress"))["step"] == 199
    assert statistics.median(took) < 0.001
    before = time.monotonic()
    reporter.close()
    assert time.monotonic() - before < 10
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    wait_for(lambda: not any(thread.name == "telemetry-file" for thread in threading.enumerate()))
    os.close(reader)


def test_a_file_that_could_not_be_written_is_written_when_its_folder_is_back(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "workspace"
    folder.write_text("in the way")
    reporter = Reporter(IDENTITY, progress_path=folder / "progress.json", stream=io.StringIO())
    with caplog.at_level(logging.INFO):
        reporter.update("Training", 1, 2)
        wait_for(lambda: "cannot be written" in caplog.text)
        folder.unlink()
        reporter.update("Publishing", 2, 2)
        reporter.close()
    assert json.loads((folder / "progress.json").read_text())["step"] == 2
    assert caplog.text.count("cannot be written") == caplog.text.count("is written again") == 1


def test_without_threads_updates_go_on_and_threads_start_later(
    tmp_path: Path, free_port: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The system has no room for the stack of a thread; a limit on processes gives the same error."""
    monkeypatch.setattr(background, "RETRY_SECONDS", 0.0)
    monkeypatch.setattr("finetune_trainer.telemetry.reporter._INTERVAL_SECONDS", 0.0)
    before = threading.stack_size(1 << 46)
    try:
        reporter = Reporter(
            IDENTITY, progress_path=tmp_path / "progress.json", port=free_port, stream=io.StringIO()
        )
        for step in range(10):
            reporter.update("Training", step, 10)
    finally:
        threading.stack_size(before)
    assert caplog.text.count("cannot start a thread") == 3
    reporter.update("Training", 10, 10)
    assert json.loads(get(reporter.port, "/progress"))["step"] == 10
    reporter.close()
    assert json.loads((tmp_path / "progress.json").read_text())["step"] == 10


def test_a_port_in_use_is_logged_and_the_next_port_is_used(
    free_port: int, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.socket() as taken, caplog.at_level(logging.INFO):
        taken.bind(("127.0.0.1", free_port))
        taken.listen()
        reporter = Reporter(IDENTITY, port=free_port, stream=io.StringIO())
        assert reporter.port is not None
        assert free_port < reporter.port < free_port + PORTS_TRIED
        get(reporter.port, "/progress")
        reporter.close()
    assert f"port {free_port} cannot be used" in caplog.text


def test_the_run_continues_without_a_port_and_a_writable_file(
    caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("in the way")
    reporter = Reporter(
        IDENTITY,
        progress_path=tmp_path / "file" / "progress.json",
        host="203.0.113.1",
        port=18080,
        stream=io.StringIO(),
    )
    reporter.update("Training", 1, 2)
    reporter.close()
    assert reporter.port is None
    assert "the run continues without telemetry" in caplog.text
    assert "progress file cannot be written" in caplog.text


def test_a_terminal_gets_a_bar(tmp_path: Path) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    reporter = Reporter(IDENTITY, progress_path=tmp_path / "progress.json", stream=terminal)
    reporter.update("Training", 5, 10, loss=0.5)
    reporter.close()
    assert "Train Training:  50%" in terminal.getvalue()
    assert "loss 0.5000" in terminal.getvalue()
