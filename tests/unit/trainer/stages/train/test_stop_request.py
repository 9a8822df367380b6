from __future__ import annotations

import os
import signal
from contextlib import suppress

import pytest
from finetune_trainer.errors import Reason
from finetune_trainer.stages.train.stop_request import StopRequest, interrupted
from finetune_trainer.termination import Terminated


def send(number: signal.Signals = signal.SIGTERM) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_work_at_once_and_the_earlier_handler_is_restored(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    stop = StopRequest()
    with pytest.raises(Terminated, match=number.name), stop.listening():
        send(number)
    assert stop.received
    assert signal.getsignal(number) is before


def test_held_work_goes_on_until_it_asks() -> None:
    stop = StopRequest()
    done = []

    def work() -> None:
        with stop.listening(), stop.held():
            send()
            done.append("first part")
            stop.check()
            done.append("second part")

    with pytest.raises(Terminated):
        work()
    assert done == ["first part"]


def test_held_work_goes_on_until_its_end() -> None:
    stop = StopRequest()
    done = []

    def work() -> None:
        with stop.listening():
            with stop.held():
                send()
                send(signal.SIGINT)
                done.append("held")
            done.append("after it")

    with pytest.raises(Terminated, match="SIGTERM"):
        work()
    assert done == ["held"]


def test_further_signals_do_not_disturb_the_handling_of_the_first() -> None:
    stop = StopRequest()
    cleaned = []

    def work() -> None:
        with stop.listening():
            try:
                send()
            finally:
                send()
                send(signal.SIGINT)
                cleaned.append(True)

    with pytest.raises(Terminated, match="SIGTERM"):
        work()
    assert cleaned == [True]


def test_a_request_that_a_library_swallowed_is_raised_at_the_next_check() -> None:
    stop = StopRequest()
    with stop.listening():
        # Python swallows exceptions in destructors like this.
        with suppress(BaseException):
            send()
        with pytest.raises(Terminated):
            stop.check()


def test_an_error_of_held_work_is_not_replaced_by_the_request() -> None:
    stop = StopRequest()

    def work() -> None:
        with stop.listening(), stop.held():
            send()
            raise ValueError("own")

    with pytest.raises(ValueError, match="own"):
        work()


def test_finished_work_ignores_requests() -> None:
    stop = StopRequest()
    with stop.listening():
        stop.hold()
        send()
    assert stop.received


@pytest.mark.parametrize(
    ("saved", "said"), [((3, 8), "its state at step 3 of 8 is saved"), (None, "no step had been finished")]
)
def test_the_message_names_what_is_kept(saved: tuple[int, int] | None, said: str) -> None:
    error = interrupted("SIGTERM", saved)
    assert error.reason is Reason.INTERRUPTED
    assert said in error.message
