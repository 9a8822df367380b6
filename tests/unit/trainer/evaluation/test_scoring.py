from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from finetune_trainer.data.masking.example import IGNORED, Example
from finetune_trainer.evaluation.scoring import (
    batches,
    distributions,
    kl_divergence,
    predictions,
    row_losses,
    supervised_log_probabilities,
)
from transformers import LlamaConfig, LlamaForCausalLM

EXAMPLES = [
    Example([1, 2, 3, 4, 5], [IGNORED, IGNORED, 3, 4, 5], row=1),
    Example([6, 7], [IGNORED, 7], row=2),
    Example([8, 9, 1, 2], [IGNORED, 9, IGNORED, 2], row=3),
]


@pytest.fixture(scope="module")
def model() -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=16,
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
    )
    return LlamaForCausalLM(config).eval()


def expected(model: Any, example: Example) -> torch.Tensor:
    """Return log-probabilities from transformers' own logits of the unpadded row."""
    logits = model(torch.tensor([example.input_ids])).logits[0].detach()
    scores = torch.log_softmax(logits, dim=-1)
    return torch.stack([scores[position - 1, example.labels[position]] for position in example.supervised])


def test_a_padded_batch_gives_each_row_the_score_that_it_has_alone(model: Any) -> None:
    for found, example in zip(supervised_log_probabilities(model, EXAMPLES), EXAMPLES, strict=True):
        assert torch.allclose(found, expected(model, example), atol=1e-5)


def test_losses_keep_the_order_of_the_examples_with_any_batches(model: Any) -> None:
    seen: list[tuple[int, int]] = []
    losses = row_losses(model, EXAMPLES, 5, lambda done, total: seen.append((done, total)))
    assert [(loss.row, loss.tokens) for loss in losses] == [(1, 3), (2, 1), (3, 2)]
    for loss, example in zip(losses, EXAMPLES, strict=True):
        assert loss.nats == pytest.approx(-float(expected(model, example).sum()), abs=1e-4)
    assert seen[-1] == (3, 3)


def test_distributions_are_complete_and_agree_with_the_scores(model: Any) -> None:
    example = EXAMPLES[0]
    found = distributions(model, example, example.supervised)
    assert found.shape == (3, 16)
    assert torch.allclose(found.exp().sum(-1), torch.ones(3), atol=1e-5)
    chosen = found.gather(1, torch.tensor([[3], [4], [5]])).squeeze(1)
    assert torch.allclose(chosen, expected(model, example), atol=1e-5)


def test_one_pass_predicts_what_scores_and_distributions_say(model: Any) -> None:
    example = EXAMPLES[0]
    passes: list[None] = []
    counting = model.register_forward_hook(lambda *_: passes.append(None))
    inner = model.model.register_forward_hook(lambda *_: passes.append(None))
    try:
        chosen, found = predictions(model, example, example.supervised)
    finally:
        counting.remove()
        inner.remove()
    assert len(passes) == 1
    (scores,) = supervised_log_probabilities(model, [example])
    assert torch.equal(chosen, scores)
    assert torch.equal(found, distributions(model, example, example.supervised))


@pytest.mark.parametrize(
    ("lengths", "maximum", "groups"),
    [
        ([3, 9, 3, 8], 9, [[1], [3], [0, 2]]),
        ([20, 1], 9, [[0], [1]]),
        ([2, 2, 2], 4, [[0, 1], [2]]),
        ([], 4, []),
    ],
)
def test_the_longest_examples_come_first_and_padding_counts(
    lengths: list[int], maximum: int, groups: list[list[int]]
) -> None:
    assert batches(lengths, maximum) == groups


def test_the_divergence_follows_the_formula_and_is_zero_if_equal() -> None:
    trained = torch.tensor([[0.5, 0.5], [0.9, 0.1]]).log()
    merged = torch.tensor([[0.5, 0.5], [0.5, 0.5]]).log()
    found = kl_divergence(trained, merged).tolist()
    assert found[0] == pytest.approx(0.0, abs=1e-12)
    assert found[1] == pytest.approx(0.9 * math.log(1.8) + 0.1 * math.log(0.2), abs=1e-6)


def test_the_divergence_keeps_nan_and_ignores_tokens_without_probability() -> None:
    certain = torch.tensor([[1.0, 0.0], [0.5, 0.5], [0.5, 0.5]]).log()
    other = torch.tensor([[0.5, 0.5], [1.0, 0.0], [math.nan, 0.5]]).log()
    first, second, third = kl_divergence(certain, other).tolist()
    assert first == pytest.approx(math.log(2))
    assert second == math.inf
    assert math.isnan(third)


def test_the_divergence_of_a_small_difference_is_not_lost_in_rounding() -> None:
    """Half of the variance of the difference, as the second-order expansion says."""
    generator = torch.Generator().manual_seed(1)
    logits = 5 * torch.randn(1, 5000, generator=generator)
    difference = 1e-3 * torch.randn(1, 5000, generator=generator)
    weights = torch.softmax(logits.double(), -1)
    expected = 0.5 * ((weights * difference.square()).sum() - (weights * difference).sum().square())
    found = kl_divergence(torch.log_softmax(logits, -1), torch.log_softmax(logits + difference, -1))
    assert float(found) == pytest.approx(float(expected), rel=0.02)


def test_a_hit_is_a_token_that_the_model_finds_most_likely(model: Any) -> None:
    losses = row_losses(model, EXAMPLES, 100, lambda *_: None)
    for loss, example in zip(losses, EXAMPLES, strict=True):
        logits = model(input_ids=torch.tensor([example.input_ids])).logits[0]
        best = logits.argmax(-1)
        assert loss.correct == sum(
            int(best[place - 1] == example.input_ids[place]) for place in example.supervised
        )
    probable = [int(token) for token in model(input_ids=torch.tensor([[1, 2, 3]])).logits[0].argmax(-1)]
    hit = Example([1, 2, 3, probable[2]], [IGNORED] * 3 + [probable[2]], row=1)
    assert row_losses(model, [hit], 100, lambda *_: None)[0].correct == 1
