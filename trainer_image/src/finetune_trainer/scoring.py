"""What a model says about given sequences: log-probabilities of supervised tokens, by teacher forcing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from finetune_trainer.evaluation import RowLoss

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from finetune_trainer.training.examples import Example

# Logits are the largest tensor of an evaluation: at most this many of them at once (256 MB in bf16).
_LOGITS_AT_ONCE = 1 << 27
_POSITIONS_AT_ONCE = 256


def row_losses(
    model: Any, examples: Sequence[Example], progress: Callable[[int, int], None]
) -> list[RowLoss]:
    """Loss of each example, in the given order.

    Examples are batched by length, which wastes little on padding. `progress` gets (examples done, in all).
    """
    losses: dict[int, RowLoss] = {}
    budget = max(1, _LOGITS_AT_ONCE // model.config.vocab_size)
    for batch in batches([len(example.input_ids) for example in examples], budget):
        members = [examples[index] for index in batch]
        for index, log_probabilities in zip(batch, supervised_log_probabilities(model, members), strict=True):
            example = examples[index]
            losses[index] = RowLoss(
                example.row, -float(log_probabilities.double().sum()), len(example.supervised)
            )
        progress(len(losses), len(examples))
    return [losses[index] for index in range(len(examples))]


def batches(lengths: Sequence[int], maximum_tokens: int) -> list[list[int]]:
    """Group indices of sequences of like length; padded, a group has at most `maximum_tokens` tokens.

    A sequence longer than that is a group of its own. The longest come first, so that a device without
    enough memory fails at once.
    """
    groups: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda index: (-lengths[index], index)):
        if groups and lengths[groups[-1][0]] * (len(groups[-1]) + 1) <= maximum_tokens:
            groups[-1].append(index)
        else:
            groups.append([index])
    return groups


@torch.no_grad()
def supervised_log_probabilities(model: Any, examples: Sequence[Example]) -> list[torch.Tensor]:
    """Log-probability (nats, float32) of each supervised token, one vector per example."""
    targets = [example.supervised for example in examples]
    # The logits that predict token t are those at position t - 1.
    kept = sorted({position - 1 for positions in targets for position in positions})
    place = {position: index for index, position in enumerate(kept)}
    logits = _logits(model, examples, kept)
    result = []
    for row, (example, positions) in enumerate(zip(examples, targets, strict=True)):
        labels = torch.tensor([example.labels[position] for position in positions], device=logits.device)
        places = torch.tensor([place[position - 1] for position in positions], device=logits.device)
        parts = [
            torch.log_softmax(logits[row, chunk].float(), dim=-1)
            .gather(1, labels[first : first + len(chunk), None])
            .squeeze(1)
            for first, chunk in _chunks(places)
        ]
        result.append(torch.cat(parts).cpu())
    return result


@torch.no_grad()
def distributions(model: Any, example: Example, positions: Sequence[int]) -> torch.Tensor:
    """Log-probabilities (nats, float32, on the CPU) of every token of the vocabulary at `positions`.

    Shape (len(positions), vocabulary). A position names the token that is predicted.
    """
    logits = _logits(model, [example], [position - 1 for position in positions])
    return torch.log_softmax(logits[0].float(), dim=-1).cpu()


def _chunks(places: torch.Tensor) -> list[tuple[int, torch.Tensor]]:
    return [
        (first, places[first : first + _POSITIONS_AT_ONCE])
        for first in range(0, len(places), _POSITIONS_AT_ONCE)
    ]


def _logits(model: Any, examples: Sequence[Example], kept: list[int]) -> torch.Tensor:
    """Logits of shape (examples, len(kept), vocabulary)."""
    device = model.get_input_embeddings().weight.device
    if device.type == "meta":
        # Weights stay on disk until a layer needs them; the inputs live on the CPU.
        device = torch.device("cpu")
    length = max(len(example.input_ids) for example in examples)
    # Padding is on the right and masked: its value is never seen by a real token.
    ids = torch.zeros((len(examples), length), dtype=torch.long)
    mask = torch.zeros((len(examples), length), dtype=torch.long)
    for row, example in enumerate(examples):
        ids[row, : len(example.input_ids)] = torch.tensor(example.input_ids)
        mask[row, : len(example.input_ids)] = 1
    outputs = model(
        input_ids=ids.to(device),
        attention_mask=mask.to(device),
        logits_to_keep=torch.tensor(kept, device=device),
        use_cache=False,
    )
    logits: torch.Tensor = outputs.logits
    return logits
