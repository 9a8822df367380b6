from __future__ import annotations

import pytest
from finetune_trainer.errors import Reason, StageError
from finetune_trainer.stages.prepare.operator_hold import HOLD_SECONDS, after_the_operator, await_decision
from finetune_trainer.termination import Terminated

REPORTED = 100.0


@pytest.mark.parametrize("passed", [0.0, 1.5, HOLD_SECONDS, 3600.0])
def test_a_failure_waits_until_the_operator_had_its_time(passed: float) -> None:
    waited: list[float] = []
    with (
        pytest.raises(StageError, match="too small"),
        after_the_operator(REPORTED, lambda: REPORTED + passed, waited.append),
    ):
        raise StageError(Reason.INVALID_DATASET, "too small")
    assert waited == [max(0.0, HOLD_SECONDS - passed)]


@pytest.mark.parametrize("passed", [0.0, 4.0, 3600.0])
def test_a_model_that_was_just_sized_waits_until_the_operator_had_its_time(passed: float) -> None:
    waited: list[float] = []
    await_decision(REPORTED, lambda: REPORTED + passed, waited.append)
    assert waited == [max(0.0, HOLD_SECONDS - passed)]


def test_success_does_not_wait() -> None:
    waited: list[float] = []
    with after_the_operator(REPORTED, lambda: REPORTED, waited.append):
        pass
    assert waited == []


def test_a_hold_during_the_wait_ends_the_stage_as_interrupted() -> None:
    def terminate(_seconds: float) -> None:
        raise Terminated

    with pytest.raises(Terminated), after_the_operator(REPORTED, lambda: REPORTED, terminate):
        raise StageError(Reason.INVALID_DATASET, "too small")
