from __future__ import annotations

from typing import Any

import pytest
from finetune_operator.api.spec import FineTuneJobSpec
from finetune_operator.sizing.cost.work import known_rows, planned_steps, rows_of, sizes_of, work_of
from finetune_operator.sizing.memory.shape import model_shape
from finetune_operator.sizing.memory.training_plan import TrainingPlan

from tests.support.operator import CONFIG, PREPARE, make_spec

SHAPE = sizes_of(model_shape(CONFIG))
PLAN = TrainingPlan(
    sequence_length=100,
    micro_batch_size=4,
    gradient_accumulation=4,
    gradient_checkpointing=False,
    optimizer="AdamW",
    weights="Dequantized",
)


def spec(**training: Any) -> FineTuneJobSpec:
    return FineTuneJobSpec.parse(make_spec(training=training))


@pytest.mark.parametrize(
    ("training", "rows", "steps"),
    [
        ({}, 160, 30),
        ({}, 161, 33),
        ({}, 1, 3),
        ({"epochs": 0.5}, 160, 5),
        ({"epochs": 0.01}, 160, 1),
        ({"maximumSteps": 7}, 160, 7),
    ],
)
def test_steps_are_those_that_the_trainer_plans(training: dict[str, Any], rows: int, steps: int) -> None:
    assert planned_steps(spec(**training), rows) == steps


def test_all_epochs_count_every_token_once_each() -> None:
    rows = known_rows(161, 10, 100, tokens=161 * 50)
    work = work_of(spec(epochs=2), SHAPE, PLAN, rows, "expected")
    assert work.steps == 22
    assert work.tokens == pytest.approx(2 * 161 * 50)


def test_packed_rows_share_passes_and_never_have_more_than_padded_ones() -> None:
    short = known_rows(160, 10, 100, tokens=160 * 10)
    work = work_of(spec(), SHAPE, PLAN, short, "expected")
    assert work.training.count == work.steps, "sixteen rows of 10 tokens fit one pass of 400"
    full = known_rows(160, 10, 100, tokens=160 * 100)
    assert work_of(spec(), SHAPE, PLAN, full, "high").training.count == 4 * work.steps
    padded = work_of(spec(packing="Never"), SHAPE, PLAN, short, "expected")
    assert padded.training.count == 4 * work.steps


def test_checkpointing_dequantized_weights_and_the_optimizer_change_a_pass() -> None:
    rows = known_rows(160, 10, 100, tokens=160 * 50)
    plain = work_of(spec(), SHAPE, PLAN, rows, "expected").training
    for changed in (
        {"gradient_checkpointing": True},
        {"optimizer": "PagedAdamW8Bit"},
    ):
        other = TrainingPlan(**{**vars(PLAN), **changed})
        assert work_of(spec(), SHAPE, other, rows, "expected").training.operations > plain.operations
    packed = TrainingPlan(**{**vars(PLAN), "weights": "Quantized"})
    assert work_of(spec(), SHAPE, packed, rows, "expected").training.bytes > plain.bytes


def test_early_stopping_lowers_only_the_lower_bound_of_the_steps() -> None:
    rows = known_rows(16_000, 100, 100, tokens=16_000 * 50)
    stopping = spec(epochs=1, earlyStopping={"patience": 3, "intervalSteps": 50})
    steps = [work_of(stopping, SHAPE, PLAN, rows, bound).steps for bound in ("low", "expected", "high")]
    assert steps == [200, 1000, 1000]
    assert work_of(stopping, SHAPE, PLAN, rows, "expected").selection.count > 0
    assert work_of(spec(epochs=1), SHAPE, PLAN, rows, "expected").selection.count == 0


def test_answers_that_nobody_asks_for_take_no_pass() -> None:
    rows = known_rows(160, 10, 100, supervised=1600)
    quiet = FineTuneJobSpec.parse(make_spec(evaluation={"generatedRows": 0}))
    assert work_of(quiet, SHAPE, PLAN, rows, "expected").generation.count == 0
    asked = FineTuneJobSpec.parse(make_spec())
    assert work_of(asked, SHAPE, PLAN, rows, "expected").generation.count == 2 * 15


def test_tokens_that_no_trainer_counted_are_guessed_within_what_is_known() -> None:
    rows = known_rows(100, 10, 200, supervised=15_000)
    assert (rows.tokens.low, rows.tokens.expected, rows.tokens.high) == (15_000, 15_000, 20_000)
    assert "not known" in rows.reason
    assert known_rows(100, 10, 200, tokens=9_000).reason == ""
    wild = known_rows(100, 10, 200, tokens=10**12)
    assert wild.tokens.high == 20_000, "no total is above that of rows as long as the longest"


def test_rows_come_from_the_dataset_report_of_any_contract_version() -> None:
    assert rows_of(None) is None
    assert rows_of({}) is None
    older = rows_of(PREPARE["dataset"])
    assert older is not None
    assert older.tokens.low < older.tokens.high == 17 * 60
    newer = rows_of({**PREPARE["dataset"], "trainingTokens": 900})
    assert newer is not None
    assert newer.tokens.low == newer.tokens.high == 900
