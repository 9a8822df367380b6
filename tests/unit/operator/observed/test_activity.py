from __future__ import annotations

from finetune_operator.api.stages import Stage
from finetune_operator.observed.activity import remember

from tests.support.operator import make_progress

REPORT = {"steps": 5, "seconds": 4.0, "tokens": 5006}


def test_each_number_stays_until_a_report_has_a_newer_one() -> None:
    last = remember(
        None, make_progress(Stage.TRAIN, learningRate=1e-4, gradientNorm=2.0, totalSteps=9, training=REPORT)
    )
    last = remember(last, make_progress(Stage.TRAIN, activity="EvaluatingTuned", step=0, loss=None))
    assert last is not None
    assert (last.step, last.total_steps, last.loss) == (5, 9, 1.5)
    assert (last.learning_rate, last.gradient_norm) == (1e-4, 2.0)
    assert last.report is not None
    assert last.report.tokens == 5006


def test_other_stages_change_nothing() -> None:
    last = remember(None, make_progress(Stage.TRAIN))
    assert remember(last, make_progress(Stage.MERGE, loss=9.0)) is last
    assert remember(None, make_progress(Stage.PREPARE)) is None


def test_a_new_attempt_begins_without_the_numbers_of_the_last_one() -> None:
    last = remember(None, make_progress(Stage.TRAIN))
    last = remember(last, make_progress(Stage.TRAIN, attempt=1, activity="LoadingModel", step=0, loss=None))
    assert last is not None
    assert (last.attempt, last.step, last.loss) == (1, None, None)


def test_the_share_of_time_without_training_is_between_0_and_1() -> None:
    """The report covers 5 seconds of the stage."""
    for seconds, share in ((4.0, 0.2), (0.0, 1.0), (1e300, 0.0)):
        report = {**REPORT, "seconds": seconds}
        last = remember(None, make_progress(Stage.TRAIN, training=report))
        assert last is not None
        assert last.not_training is not None
        assert abs(last.not_training - share) < 1e-9
    backwards = make_progress(Stage.TRAIN, training=REPORT, heartbeatTime="2020-01-01T00:00:00Z")
    last = remember(None, backwards)
    assert last is not None
    assert last.not_training is None
