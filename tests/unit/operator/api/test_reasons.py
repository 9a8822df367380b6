from __future__ import annotations

from finetune_operator.api.reasons import ReasonClass, classify_trainer_reason


def test_a_reason_of_a_newer_trainer_is_judged_by_its_exit_code() -> None:
    assert classify_trainer_reason("Novel", 65) is ReasonClass.PERMANENT
    assert classify_trainer_reason("Novel", 69) is ReasonClass.RETRYABLE
    assert classify_trainer_reason("InternalError", 65) is ReasonClass.RETRYABLE
