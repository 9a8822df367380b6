from __future__ import annotations

from finetune_trainer.stages.train.step_clock import StepClock


class _Time:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_step_lasts_from_the_end_of_the_one_before_without_pauses() -> None:
    time = _Time()
    clock = StepClock(time)
    time.now += 50
    clock.begin()
    time.now += 2
    assert clock.end_step() == 2
    with clock.pause():
        time.now += 30
    time.now += 3
    assert clock.end_step() == 3
    time.now += 1
    assert clock.end_step() == 1


def test_a_step_that_ends_during_a_pause_gets_only_its_part() -> None:
    """Before a checkpoint is copied, the numbers of the last step are read."""
    time = _Time()
    clock = StepClock(time)
    with clock.pause():
        time.now += 4
        assert clock.end_step() == 4
        time.now += 10
    time.now += 1
    assert clock.end_step() == 1
