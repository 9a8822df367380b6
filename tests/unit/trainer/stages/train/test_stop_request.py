from __future__ import annotations

import os
import signal

from finetune_trainer.stages.train.stop_request import StopRequest


def test_a_signal_is_recorded_and_the_earlier_handler_is_restored() -> None:
    before = signal.getsignal(signal.SIGTERM)
    stop = StopRequest()
    with stop.listening():
        os.kill(os.getpid(), signal.SIGTERM)
    assert stop.received
    assert signal.getsignal(signal.SIGTERM) is before
