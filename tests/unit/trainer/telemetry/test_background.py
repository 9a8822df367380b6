from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Iterator

import pytest
from finetune_trainer.telemetry import background
from finetune_trainer.telemetry.background import BackgroundTask

LARGER_THAN_MEMORY = 1 << 46


@pytest.fixture
def no_new_threads() -> Iterator[None]:
    """Let no thread start: the system has no room for the stack of one. A limit on processes gives the same error."""
    before = threading.stack_size(LARGER_THAN_MEMORY)
    yield
    threading.stack_size(before)


def test_an_urgent_request_is_done_at_once_and_others_together() -> None:
    done = threading.Event()
    calls: list[float] = []

    def action() -> None:
        calls.append(time.monotonic())
        done.set()

    task = BackgroundTask("t", action, 60)
    task.supervise()
    task.request(urgent=True)
    assert done.wait(20)
    for _ in range(100):
        task.request()
    task.close(20)
    assert len(calls) == 2


def test_an_action_that_hangs_holds_up_neither_requests_nor_the_end() -> None:
    release = threading.Event()
    began = threading.Event()

    def action() -> None:
        began.set()
        release.wait()

    task = BackgroundTask("t", action, 0.01)
    task.supervise()
    task.request(urgent=True)
    assert began.wait(20)
    start = time.thread_time()
    for _ in range(1000):
        task.request(urgent=True)
        task.supervise()
    assert time.thread_time() - start < 1
    before = time.monotonic()
    task.close(0.1)
    assert time.monotonic() - before < 5
    release.set()


def test_an_action_that_fails_is_logged_once_and_called_again(caplog: pytest.LogCaptureFixture) -> None:
    calls = threading.Semaphore(0)

    def action() -> None:
        calls.release()
        raise ValueError("broken")

    task = BackgroundTask("t", action, 0.01)
    task.supervise()
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            task.request(urgent=True)
            assert calls.acquire(timeout=20)
        task.close(20)
    assert [record.getMessage() for record in caplog.records] == [
        "telemetry: t failed (ValueError('broken')); the run continues"
    ]


def test_a_thread_that_cannot_start_costs_a_line_and_starts_later(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, no_new_threads: None
) -> None:
    del no_new_threads
    monkeypatch.setattr(background, "RETRY_SECONDS", 0.0)
    done = threading.Event()
    task = BackgroundTask("t", done.set, 0.01)
    with caplog.at_level(logging.WARNING):
        task.request()
        for _ in range(3):
            task.supervise()
    assert not task.alive
    assert len(caplog.records) == 1
    assert "cannot start a thread" in caplog.text
    threading.stack_size(0)
    task.supervise()
    assert done.wait(20)
    task.close(20)


def test_a_forked_process_starts_no_thread() -> None:
    task = BackgroundTask("t", lambda: None, 0.01)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        task.supervise()
        os.write(writer, str(task.alive).encode())
        os._exit(0)
    os.waitpid(child, 0)
    assert os.read(reader, 10) == b"False"
    os.close(reader)
    os.close(writer)
    task.close(20)
