"""The loss of supervised tokens, without ever holding the logits of a whole batch."""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd.function import once_differentiable

from finetune_trainer.data.masking.example import IGNORED
from finetune_trainer.model.output_head import OutputHead, chunks, hidden_states, output_head


def supervised_places(labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Where something is learned, and what: flat positions of the predicting tokens, and the tokens they predict.

    `labels` is (rows, length), -100 where nothing is learned. The logits that predict token t are those of t - 1.
    """
    targets = torch.full_like(labels, IGNORED)
    targets[:, :-1] = labels[:, 1:]
    targets = targets.flatten()
    places = (targets != IGNORED).nonzero().squeeze(1)
    return places, targets[places]


def negative_log_likelihood(
    model: Any, input_ids: torch.Tensor, places: torch.Tensor, targets: torch.Tensor
) -> torch.Tensor:
    """Sum over supervised tokens of -ln p(token), nats, float32, with its gradient for the adapter.

    `input_ids` is (rows, length), padded on the right; `places` and `targets` as `supervised_places` gives them.
    """
    states = hidden_states(model, input_ids).flatten(0, 1)
    loss: torch.Tensor = _ChunkedLoss.apply(states, places, targets, output_head(model))
    return loss


class _ChunkedLoss(torch.autograd.Function):
    """Loss of some positions, and the gradient with respect to their hidden states, computed together.

    The head is frozen, so nothing but the gradient (as large as the hidden states) lives on to the backward pass.
    With p = softmax(logits) the gradient is (p - onehot(target)) for the logits, times scale * (1 - tanh^2) where a
    softcap bounds them, times the head's weight.
    """

    @staticmethod
    def forward(
        ctx: Any, states: torch.Tensor, places: torch.Tensor, targets: torch.Tensor, head: OutputHead
    ) -> torch.Tensor:
        weight = head.projection.weight
        loss = torch.zeros((), dtype=torch.float32, device=states.device)
        gradient = torch.zeros_like(states) if ctx.needs_input_grad[0] else None
        for chunk in chunks(places.shape[0], weight.shape[0]):
            chosen = places[chunk]
            wanted = targets[chunk].unsqueeze(1)
            bounded = head.bounded(states.index_select(0, chosen))
            # What follows changes `scores` in place: one tensor of float32 for the chunk's logits, whatever is done.
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
            # Else it would live until the next chunk's scores are there.
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
