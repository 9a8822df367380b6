from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
from finetune_operator.api.spec import Training
from finetune_operator.sizing.learning_rate import (
    HIGHEST,
    LOWEST,
    PROVISIONAL,
    choose_learning_rate,
    lora_multiple,
    optimizer_steps,
    recommended_rate,
    warnings,
)
from hypothesis import given
from hypothesis import strategies as st

from tests.support.sizing_jobs import mistral


def training(**members: Any) -> Training:
    return Training.model_validate(members)


@pytest.mark.parametrize(
    ("family", "hidden", "published"),
    [
        # 5e-5 * 10 * (2000 / hidden)^P, with P = 0.781 for Llama and 0.0775 for Qwen.
        ("llama", 2048, 4.91e-4),
        ("llama", 3072, 3.58e-4),
        ("llama", 4096, 2.86e-4),
        ("llama", 8192, 1.66e-4),
        ("qwen3", 4096, 4.73e-4),
        ("qwen2", 5120, 4.65e-4),
    ],
)
def test_a_long_run_with_the_published_batch_has_the_published_rate(
    family: str, hidden: int, published: float
) -> None:
    found = recommended_rate(family, hidden, batch=128, alpha=32, steps=1000)
    assert found == pytest.approx(published, rel=0.005)


def test_the_best_rates_of_the_published_sweep_are_near_the_rule() -> None:
    """Batch 128 and 780 steps; the grid of the sweep has a factor of about 3 between two rates."""
    sweep = {("llama", 4096): 3e-4, ("llama", 8192): 3e-4, ("llama", 2048): 1e-3, ("qwen3", 5120): 3e-4}
    for (family, hidden), best in sweep.items():
        found = recommended_rate(family, hidden, batch=128, alpha=32, steps=780)
        assert 1 / 3 < found / best < 3, (family, hidden, found)


def test_short_runs_have_half_as_much_again_as_long_ones() -> None:
    assert [lora_multiple(steps) for steps in (1, 100, 1000, 10**6)] == [15, 15, 10, 10]
    assert lora_multiple(None) == 10
    middle = lora_multiple(round(math.sqrt(100 * 1000)))
    assert middle == pytest.approx(12.5, abs=0.01)


def test_the_rate_follows_the_square_root_of_the_batch_up_to_a_limit() -> None:
    def rate(batch: int) -> float:
        return recommended_rate("llama", 4096, batch, 32, 1000)

    assert rate(64) / rate(16) == pytest.approx(2)
    assert rate(512) / rate(128) == pytest.approx(2)
    assert rate(65536) == rate(512)


@pytest.mark.parametrize("variant", ["Standard", "RankStabilized", "DoRA"])
def test_the_rank_changes_nothing(variant: str) -> None:
    rates = {
        choose_learning_rate(training(lora={"rank": rank, "variant": variant}), mistral(), 1000)
        for rank in (1, 8, 64, 512)
    }
    assert len(rates) == 1


def test_a_stronger_adapter_has_a_lower_rate() -> None:
    def rate(**lora: Any) -> float:
        return choose_learning_rate(training(lora=lora, effectiveBatchSize=128), mistral(), 1000).value

    assert rate(alpha=128) == pytest.approx(rate(alpha=32) / 2, rel=0.05)
    assert rate(alpha=8) == pytest.approx(rate(alpha=32) * 2, rel=0.05)
    # At the default rank of 16, alpha / sqrt(rank) is 4 times alpha / rank.
    assert rate(variant="RankStabilized") == rate(alpha=128)


def test_a_wider_model_has_a_lower_rate() -> None:
    rates = [
        choose_learning_rate(training(), replace(mistral(), hidden=hidden), 10_000).value
        for hidden in (1024, 2048, 4096, 8192)
    ]
    assert rates == sorted(rates, reverse=True)
    assert len(set(rates)) == 4


def test_the_rate_of_mistral_7b_has_each_factor_in_its_reason() -> None:
    found = choose_learning_rate(training(), mistral(), 3000)
    assert found.value == 0.00011
    assert found.reason is not None
    for part in ("5e-05 x 11.2", "564 steps", "(2000 / 4096)^0.781", "sqrt(16 / 128)", "LoRA Without Regret"):
        assert part in found.reason
    assert "(alpha)" not in found.reason, "a factor of 1 is not listed"


@pytest.mark.parametrize(
    ("members", "examples", "steps"),
    [
        ({"maximumSteps": 7}, None, 7),
        ({"maximumSteps": 7}, 1000, 7),
        ({}, None, None),
        ({}, 33, 9),
        ({"epochs": 0.5}, 64, 2),
        ({"epochs": 0.01}, 3, 1),
    ],
)
def test_steps_are_those_of_the_run(members: dict[str, Any], examples: int | None, steps: int | None) -> None:
    assert optimizer_steps(training(**members), examples) == steps


def test_unknown_steps_count_as_a_long_run() -> None:
    found = choose_learning_rate(training(), mistral(), None)
    assert found.value == choose_learning_rate(training(maximumSteps=5000), mistral(), None).value
    assert "unknown number of steps" in (found.reason or "")


def test_a_given_rate_stays_and_has_no_reason() -> None:
    for given_rate in (1e-7, 0.0002, 0.5):
        found = choose_learning_rate(training(learningRate=given_rate), mistral(), 10)
        assert (found.value, found.reason) == (given_rate, None)


def test_the_rate_is_provisional_until_the_model_is_known() -> None:
    assert choose_learning_rate(training(), None, 100) is PROVISIONAL


@given(
    hidden=st.integers(1, 10**6),
    batch=st.integers(1, 65536),
    alpha=st.integers(1, 8192),
    steps=st.integers(1, 10**7),
    variant=st.sampled_from(["Standard", "RankStabilized", "DoRA"]),
)
def test_a_chosen_rate_is_bounded_and_has_two_digits(
    hidden: int, batch: int, alpha: int, steps: int, variant: str
) -> None:
    settings = training(
        effectiveBatchSize=batch, maximumSteps=steps, lora={"alpha": alpha, "variant": variant}
    )
    found = choose_learning_rate(settings, replace(mistral(), hidden=hidden), None)
    assert LOWEST <= found.value <= HIGHEST
    assert float(f"{found.value:.1e}") == found.value
    assert found.reason is not None
    assert len(found.reason) <= 1024


def test_a_bound_is_part_of_the_reason() -> None:
    small = choose_learning_rate(training(), replace(mistral(), hidden=64), 100)
    assert (small.value, "but at most 0.001" in (small.reason or "")) == (HIGHEST, True)
    large = choose_learning_rate(training(effectiveBatchSize=1), replace(mistral(), hidden=65536), 10**6)
    assert (large.value, "but at least 1e-05" in (large.reason or "")) == (LOWEST, True)


def test_only_a_rate_above_three_in_a_thousand_has_a_warning() -> None:
    assert warnings(training()) == warnings(training(learningRate=0.003)) == ()
    (warning,) = warnings(training(learningRate=0.0031))
    assert "training.learningRate 0.0031 is above 0.003" in warning
    assert "omit it" in warning
