"""An evaluation that ranks share: each measures some of the examples, and all get the losses of all."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from finetune_trainer.evaluation.scoring import batches, supervised_scores
from finetune_trainer.model.output_head import is_sharded
from finetune_trainer.stages.train.ranks.shares import shares

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from finetune_trainer.data.masking.example import Example
    from finetune_trainer.evaluation.compare import RowLoss
    from finetune_trainer.stages.train.ranks.group import Ranks


def shared_losses(
    ranks: Ranks,
    examples: Sequence[Example],
    measure: Callable[[Sequence[Example]], list[RowLoss] | None],
    keep_pace: Callable[[Sequence[Sequence[Example]]], None] = lambda _shares: None,
) -> list[RowLoss] | None:
    """Return the losses of `examples` in their order, the same on every rank; None if a rank has abandoned its part.

    `measure` returns the losses of some examples in their order, or None. `keep_pace` gets the examples of all ranks
    afterwards.
    """
    if ranks.size == 1:
        return measure(examples)
    places = shares([len(example.input_ids) for example in examples], ranks.size)
    own = [examples[place] for place in places[ranks.rank]]
    found_own = measure(own) if own else []
    keep_pace([[examples[place] for place in share] for share in places])
    parts = ranks.gather(found_own)
    found: dict[int, RowLoss] = {}
    for share, part in zip(places, parts, strict=True):
        if part is None:
            return None
        found.update(zip(share, part, strict=True))
    return [found[place] for place in range(len(examples))]


def pacing(model: Any, ranks: Ranks, maximum_tokens: int) -> Callable[[Sequence[Sequence[Example]]], None]:
    """Return what lets this rank run as many passes of a sharded `model` as the rank with the most.

    A pass of `scoring.row_losses` has at most `maximum_tokens` tokens. A replica needs no such passes.
    """

    def keep_pace(others: Sequence[Sequence[Example]]) -> None:
        if not is_sharded(model):
            return
        passes = [
            len(batches([len(example.input_ids) for example in share], maximum_tokens)) for share in others
        ]
        shortest = min(
            (example for share in others for example in share), key=lambda each: len(each.input_ids)
        )
        for _ in range(max(passes) - passes[ranks.rank]):
            supervised_scores(model, [shortest])

    return keep_pace


def common_budgets(model: Any, budgets: Sequence[int]) -> Sequence[int]:
    """Return the tokens of a batch to try. Ranks that share weights cannot try again one by one, so they take the least."""
    return budgets[-1:] if is_sharded(model) else budgets
