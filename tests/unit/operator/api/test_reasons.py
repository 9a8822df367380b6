from __future__ import annotations

from finetune_operator.api.reasons import ReasonClass, classify_trainer_reason


def test_an_unknown_reason_gets_its_class_from_the_exit_code() -> None:
    assert classify_trainer_reason("Novel", 65) is ReasonClass.PERMANENT
    assert classify_trainer_reason("Novel", 69) is ReasonClass.RETRYABLE
    assert classify_trainer_reason("InternalError", 65) is ReasonClass.RETRYABLE
