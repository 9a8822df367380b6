"""The loss of supervised tokens. The logits of a whole batch are never in memory at once."""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd.function import once_differentiable

from finetune_trainer.data.masking.example import IGNORED
from finetune_trainer.model.output_head import OutputHead, chunks, hidden_states, output_head


def supervised_positions(labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the flat positions of the tokens that predict a supervised token, and the tokens they predict.

    `labels` is (rows, length), and -100 marks tokens that are not supervised. The logits at t - 1 predict token t.
    """
    targets = torch.full_like(labels, IGNORED)
    targets[:, :-1] = labels[:, 1:]
    targets = targets.flatten()
    positions = (targets != IGNORED).nonzero().squeeze(1)
    return positions, targets[positions]


def negative_log_likelihood(
    model: Any, input_ids: torch.Tensor, positions: torch.Tensor, targets: torch.Tensor
) -> torch.Tensor:
    """Sum over supervised tokens of -ln p(token), nats, float32, with its gradient for the adapter.

    `input_ids` is (rows, length), padded on the right; `positions` and `targets` come from `supervised_positions`.
    """
    states = hidden_states(model, input_ids).flatten(0, 1)
    loss: torch.Tensor = _ChunkedLoss.apply(states, positions, targets, output_head(model))
    return loss


class _ChunkedLoss(torch.autograd.Function):
    """Computes the loss of some positions together with the gradient for their hidden states.

    The head is frozen, so only this gradient is kept for the backward pass; it is as large as the hidden states.
    With p = softmax(logits), the gradient for the logits is p - onehot(target). A softcap multiplies it by
    scale * (1 - tanh^2). The head's weight then maps it to the hidden states.
    """

    @staticmethod
    def forward(
        ctx: Any, states: torch.Tensor, positions: torch.Tensor, targets: torch.Tensor, head: OutputHead
    ) -> torch.Tensor:
        weight = head.projection.weight
        loss = torch.zeros((), dtype=torch.float32, device=states.device)
        gradient = torch.zeros_like(states) if ctx.needs_input_grad[0] else None
        for chunk in chunks(positions.shape[0], weight.shape[0]):
            chosen = positions[chunk]
            wanted = targets[chunk].unsqueeze(1)
            bounded = head.bounded(states.index_select(0, chosen))
            # From here on `scores` changes in place: the chunk's logits take one tensor of float32.
            if head.softcap is None:
                scores, slope = bounded.float(), None
            else:
                scores = (
                    bounded * head.softcap
                    if bounded.dtype == torch.float32
                    else bounded.float().mul_(head.softcap)
                )
                slope = bounded
            del bounded
            scores.sub_(scores.amax(dim=-1, keepdim=True))
            reached = scores.gather(1, wanted)
            total = scores.exp_().sum(dim=-1, keepdim=True)
            loss += (total.log() - reached).sum()
            if gradient is None:
                continue
            scores.div_(total)
            scores.scatter_(1, wanted, scores.gather(1, wanted) - 1)
            if slope is not None:
                scores.mul_(slope.float().square_().neg_().add_(1))
                del slope
            if head.scale != 1:
                scores.mul_(head.scale)
            gradient.index_copy_(0, chosen, scores.to(weight.dtype) @ weight)
            # Otherwise it would live until the next chunk's scores exist.
            del scores
        ctx.gradient = gradient
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, outer: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        gradient: torch.Tensor | None = ctx.gradient
        if gradient is None:
            raise RuntimeError("the loss must be differentiated once, found a second backward pass")
        ctx.gradient = None
        return gradient.mul_(outer), None, None, None
