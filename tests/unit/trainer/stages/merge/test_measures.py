from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from finetune_trainer.data.masking.example import Example
from finetune_trainer.evaluation.compare import RowLoss
from finetune_trainer.evaluation.recording import Effect, Record, RecordedRow
from finetune_trainer.evaluation.scoring import kl_divergence
from finetune_trainer.stages.merge.measures import Measures, measure
from finetune_trainer.stages.merge.streamed_model import Scores

TOKENS, VOCABULARY = 40, 11
RANDOM = torch.Generator().manual_seed(4)
BASE = torch.log_softmax(torch.randn(TOKENS, VOCABULARY, generator=RANDOM), -1)
TRAINED = torch.log_softmax(BASE + 0.3 * torch.randn(TOKENS, VOCABULARY, generator=RANDOM), -1)
TARGETS = torch.randint(VOCABULARY, (TOKENS, 1), generator=RANDOM)


def chosen(predictions: torch.Tensor) -> torch.Tensor:
    return torch.log_softmax(predictions, -1).gather(1, TARGETS)[:, 0]


def scores(predictions: torch.Tensor) -> Scores:
    return Scores(chosen(predictions), predictions.argmax(-1), predictions)


def row(number: int, part: slice) -> RecordedRow:
    targets = TARGETS[part, 0].tolist()
    trained = chosen(TRAINED)[part]
    return RecordedRow(
        Example([0, *targets], [-100, *targets], number),
        RowLoss(number, -float(trained.sum()), len(targets)),
        tuple(range(1, len(targets) + 1)),
        TRAINED[part],
        Effect(trained, chosen(BASE)[part], kl_divergence(TRAINED[part], BASE[part])),
    )


RECORD = Record((row(3, slice(0, 25)), row(8, slice(25, TOKENS))), "Float32", "sha256:x")


def measured(
    written: torch.Tensor,
    exact: torch.Tensor = TRAINED,
    second: torch.Tensor = TRAINED,
    record: Record = RECORD,
) -> Measures:
    return measure(record, scores(written), scores(exact), scores(second))


def test_an_equal_model_has_no_divergence_and_slope_1() -> None:
    found = measured(TRAINED)
    assert found.mean.divergence == pytest.approx(0.0, abs=1e-9)
    assert found.mean.rounding == pytest.approx(0.0, abs=1e-9)
    assert found.mean.arithmetic == 0.0
    assert found.mean.effect == pytest.approx(float(kl_divergence(TRAINED, BASE).mean()), rel=1e-5)
    assert found.slope.value == pytest.approx(1.0)
    assert found.slope.noise == pytest.approx(0.0, abs=1e-6)
    assert found.deviation == pytest.approx(0.0, abs=1e-6)
    assert found.arithmetic == 0.0
    assert found.change == pytest.approx(float((chosen(TRAINED) - chosen(BASE)).square().mean().sqrt()))
    assert (found.tokens, [part.row for part in found.rows]) == (TOKENS, [3, 8])
    assert found.merged_loss == pytest.approx(found.trained_loss)


def test_rows_have_their_own_divergences_and_the_mean_weighs_positions() -> None:
    other = torch.cat([TRAINED[:25], BASE[25:]])
    found = measured(other)
    first, second = found.rows
    assert (first.positions, second.positions) == (25, 15)
    assert first.divergence == pytest.approx(0.0, abs=1e-9)
    assert second.divergence == pytest.approx(second.effect)
    assert found.mean.divergence == pytest.approx(second.divergence * 15 / TOKENS)


@pytest.mark.parametrize("factor", [-1.0, 0.0, 0.5, 0.9, 2.0])
def test_the_slope_is_the_part_of_the_change_that_the_merged_model_has(factor: float) -> None:
    """For a model whose log-probabilities of the targets move by exactly this part."""
    wanted = chosen(BASE) + factor * (chosen(TRAINED) - chosen(BASE))
    written = replace(scores(BASE), log_probabilities=wanted)
    found = measure(RECORD, written, scores(TRAINED), scores(TRAINED))
    assert found.slope.value == pytest.approx(factor, abs=1e-5)


def test_the_noise_is_that_of_the_second_rounding_and_counts_rows_as_clusters() -> None:
    change = (chosen(TRAINED) - chosen(BASE)).double()
    shift = 0.01 * torch.sign(change)  # every token of a row moves the slope in one direction
    second = replace(scores(TRAINED), log_probabilities=chosen(TRAINED) + shift.float())
    found = measure(RECORD, scores(TRAINED), scores(TRAINED), second)
    parts = [(change[part] @ shift[part]) ** 2 for part in (slice(0, 25), slice(25, TOKENS))]
    expected = math.sqrt(float(sum(parts))) / float(change.square().sum())
    assert found.slope.noise == pytest.approx(expected, rel=1e-3)
    assert found.rounding == pytest.approx(0.01, rel=1e-3)
    assert found.slope.value == pytest.approx(1.0)


def test_the_float32_numbers_of_the_training_count_if_there_are_any() -> None:
    """The training computed in another arithmetic, which lowers every log-probability by 0.1."""
    rows = tuple(
        replace(
            part,
            effect=replace(
                part.effect,
                trained=part.effect.trained - 0.1,
                base=part.effect.base - 0.1,
                trained_float32=part.effect.trained,
                base_float32=part.effect.base,
                arithmetic_divergence=torch.full((len(part.positions),), 0.002),
            ),
        )
        for part in RECORD.rows
        if part.effect is not None
    )
    found = measured(TRAINED, record=Record(rows, "Measured"))
    assert found.slope.value == pytest.approx(1.0)
    assert found.deviation == pytest.approx(0.0, abs=1e-6)
    assert found.mean.arithmetic == pytest.approx(0.002)
    assert found.arithmetic == pytest.approx(0.1)


def test_an_unknown_arithmetic_leaves_the_scatter_as_the_noise() -> None:
    noisy = replace(
        scores(TRAINED), log_probabilities=chosen(TRAINED) + 0.05 * torch.randn(TOKENS, generator=RANDOM)
    )
    record = replace(RECORD, arithmetic="Unknown")
    found = measure(record, noisy, scores(TRAINED), scores(TRAINED))
    assert math.isnan(found.mean.arithmetic)
    assert math.isnan(found.deviation)
    assert 0.001 < found.slope.noise < 0.1


def test_an_adapter_without_any_change_has_slope_1() -> None:
    rows = tuple(
        replace(part, effect=replace(part.effect, base=part.effect.trained))
        for part in RECORD.rows
        if part.effect is not None
    )
    found = measured(TRAINED, record=replace(RECORD, rows=rows))
    assert (found.slope.value, found.slope.noise, found.change) == (1.0, 0.0, 0.0)


def test_numbers_that_are_not_finite_stay_visible() -> None:
    broken = TRAINED.clone()
    broken[3] = torch.nan
    found = measured(broken)
    assert math.isnan(found.mean.divergence)
    assert math.isnan(found.slope.value)
    assert math.isnan(found.merged_loss)


def test_a_record_without_the_effect_cannot_be_measured() -> None:
    rows = tuple(replace(part, effect=None) for part in RECORD.rows)
    with pytest.raises(ValueError, match="must have the base's numbers"):
        measured(TRAINED, record=Record(rows))
