"""Scores given sequences with a model: log-probabilities and hits of supervised tokens by teacher forcing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from finetune_trainer.evaluation.compare import RowLoss
from finetune_trainer.model.output_head import chunks, gathered, hidden_states, output_head

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from finetune_trainer.data.masking.example import Example


def row_losses(
    model: Any, examples: Sequence[Example], maximum_tokens: int, progress: Callable[[int, int], None]
) -> list[RowLoss]:
    """Return the loss of each example, in the given order.

    Examples are batched by length, which needs little padding. A batch has at most `maximum_tokens` tokens with its
    padding. With the tokens of a training step, evaluation needs no more memory than training. `progress` gets
    (examples done, examples in all).
    """
    losses: dict[int, RowLoss] = {}
    for batch in batches([len(example.input_ids) for example in examples], maximum_tokens):
        members = [examples[index] for index in batch]
        for index, scores in zip(batch, supervised_scores(model, members), strict=True):
            example = examples[index]
            nats = -float(scores.log_probabilities.double().sum())
            losses[index] = RowLoss(example.row, nats, len(example.supervised), int(scores.hits.sum()))
        progress(len(losses), len(examples))
    return [losses[index] for index in range(len(examples))]


def batches(lengths: Sequence[int], maximum_tokens: int) -> list[list[int]]:
    """Group indices of sequences of similar length; padded, a group has at most `maximum_tokens` tokens.

    A longer sequence is a separate group. The longest come first, so that a device without enough memory fails at
    once.
    """
    groups: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda index: (-lengths[index], index)):
        if groups and lengths[groups[-1][0]] * (len(groups[-1]) + 1) <= maximum_tokens:
            groups[-1].append(index)
        else:
            groups.append([index])
    return groups


class TokenScores(NamedTuple):
    """One example's supervised tokens: log-probabilities (nats, float32), and whether each is the most likely token."""

    log_probabilities: torch.Tensor
    hits: torch.Tensor


def supervised_log_probabilities(model: Any, examples: Sequence[Example]) -> list[torch.Tensor]:
    """Return the log-probability (nats, float32) of each supervised token, one vector per example."""
    return [scores.log_probabilities for scores in supervised_scores(model, examples)]


@torch.no_grad()
def supervised_scores(model: Any, examples: Sequence[Example]) -> list[TokenScores]:
    """Return the scores of the supervised tokens of each example, on the CPU."""
    states = _hidden_states(model, examples)
    with gathered(output_head(model).projection):
        return [_scores(model, states[row], example) for row, example in enumerate(examples)]


@torch.no_grad()
def predictions(model: Any, example: Example, positions: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what `supervised_log_probabilities` and `distributions` return for one example, from one forward pass."""
    states = _hidden_states(model, [example])[0]
    with gathered(output_head(model).projection):
        return _scores(model, states, example).log_probabilities, _distributions(model, states, positions)


@torch.no_grad()
def distributions(model: Any, example: Example, positions: Sequence[int]) -> torch.Tensor:
    """Return the log-probabilities (nats, float32, on the CPU) of all tokens of the vocabulary at `positions`.

    The shape is (len(positions), vocabulary). A position is that of the predicted token.
    """
    states = _hidden_states(model, [example])[0]
    with gathered(output_head(model).projection):
        return _distributions(model, states, positions)


def _scores(model: Any, states: torch.Tensor, example: Example) -> TokenScores:
    """Return the scores of one example from its hidden states (tokens, width)."""
    head = output_head(model)
    # The state at position t - 1 predicts token t.
    predictors = torch.tensor([position - 1 for position in example.supervised], device=states.device)
    targets = torch.tensor(
        [example.labels[position] for position in example.supervised], device=states.device
    )
    parts, hits = [], []
    for chunk in chunks(len(predictors), model.config.get_text_config().vocab_size):
        logits = head.logits(states.index_select(0, predictors[chunk]))
        chosen = logits.gather(1, targets[chunk].unsqueeze(1)).squeeze(1)
        hits.append(logits.argmax(dim=-1) == targets[chunk])
        parts.append(chosen - _log_totals(logits))
        # Otherwise they would live until the next chunk's logits exist.
        del logits
    return TokenScores(torch.cat(parts).cpu(), torch.cat(hits).cpu())


def _distributions(model: Any, states: torch.Tensor, positions: Sequence[int]) -> torch.Tensor:
    """Return the log-probabilities at `positions` from the hidden states (tokens, width) of one example."""
    head = output_head(model)
    predictors = torch.tensor([position - 1 for position in positions], device=states.device)
    parts = []
    for chunk in chunks(len(predictors), model.config.get_text_config().vocab_size):
        logits = head.logits(states.index_select(0, predictors[chunk])).cpu()
        parts.append(torch.log_softmax(logits, dim=-1))
    return torch.cat(parts)


def kl_divergence(trained: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """KL(trained || other) in nats (float32) at each position; both are log-probabilities (positions, vocabulary).

    Both are normalized again in float64: without that, their rounding to float32 would outweigh a small divergence.
    """
    # Position by position, because the float64 copies of a whole vocabulary are large.
    return torch.stack([_divergence(first, second) for first, second in zip(trained, other, strict=True)])


def _divergence(trained: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    first, second = (torch.log_softmax(scores.double(), dim=-1) for scores in (trained, other))
    terms = first.exp() * (first - second)
    # A token without any probability contributes nothing; NaN elsewhere must stay.
    return terms.masked_fill_(first == -torch.inf, 0.0).sum().clamp_(min=0.0).float()


def _log_totals(logits: torch.Tensor) -> torch.Tensor:
    """Return the logarithm of the sum of exponentials of each row. It overwrites `logits` to avoid a copy."""
    largest = logits.amax(dim=-1, keepdim=True)
    return (logits.sub_(largest).exp_().sum(dim=-1).log() + largest.squeeze(1)).float()


def _hidden_states(model: Any, examples: Sequence[Example]) -> torch.Tensor:
    """Return the hidden states (examples, longest example, width)."""
    device = model.get_input_embeddings().weight.device
    length = max(len(example.input_ids) for example in examples)
    ids = torch.zeros((len(examples), length), dtype=torch.long)
    for row, example in enumerate(examples):
        ids[row, : len(example.input_ids)] = torch.tensor(example.input_ids)
    return hidden_states(model, ids.to(device))
