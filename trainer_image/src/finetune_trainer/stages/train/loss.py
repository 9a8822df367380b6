"""The loss of supervised tokens. The logits of a whole batch are never in memory at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.autograd.function import once_differentiable

from finetune_trainer.model.output_head import OutputHead, body_outputs, chunks, gathered, output_head
from finetune_trainer.model.packed_attention import packed_outputs
from finetune_trainer.model.router_loss import RouterLoss, router_loss

if TYPE_CHECKING:
    from finetune_trainer.stages.train.passes import Pass


def negative_log_likelihood(model: Any, one: Pass) -> torch.Tensor:
    """Sum over the learned tokens of a pass of -ln p(token), nats, float32, with its gradient for the adapter.

    A packed pass needs `model.packed_attention.using_attention` until its backward pass has ended.
    """
    return _likelihood(model, one, _outputs(model, one).last_hidden_state)


@dataclass(frozen=True)
class Objective:
    """What a step minimizes: the loss of its learned tokens and, times a coefficient, the load-balancing loss of routers.

    The latter is the mean over the passes of a step, weighted by their tokens without padding. `router` is None if the run
    does not ask for it.
    """

    router: RouterLoss | None = None
    coefficient: float = 0.0

    @classmethod
    def of(cls, model: Any, coefficient: float | None) -> Objective:
        """Return the objective of a run. Raises StageError(UnsupportedModel) if the model lacks what a coefficient asks for."""
        return cls() if coefficient is None else cls(router_loss(model), coefficient)

    def parts(self, model: Any, one: Pass) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return the sum of `negative_log_likelihood` and the load-balancing loss of a pass, if it is asked for."""
        if self.router is None:
            return negative_log_likelihood(model, one), None
        outputs = _outputs(model, one, output_router_logits=True)
        balance = self.router.value(outputs.router_logits, one.real)
        return _likelihood(model, one, outputs.last_hidden_state), balance

    def total(self, loss: torch.Tensor, balance: torch.Tensor | None) -> torch.Tensor:
        """Return what is minimized, of both parts of a pass in shares of its step."""
        return loss if balance is None else loss + self.coefficient * balance


def _outputs(model: Any, one: Pass, **settings: Any) -> Any:
    if one.packed is None or one.position_ids is None:
        return body_outputs(model, one.input_ids, **settings)
    return packed_outputs(model, one.input_ids, one.position_ids, one.packed, **settings)


def _likelihood(model: Any, one: Pass, states: torch.Tensor) -> torch.Tensor:
    head = output_head(model)
    with gathered(head.projection):
        loss: torch.Tensor = _ChunkedLoss.apply(states.flatten(0, 1), one.positions, one.targets, head)
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
