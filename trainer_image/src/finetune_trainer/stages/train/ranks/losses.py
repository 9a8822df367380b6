"""An evaluation that ranks share: each measures some of the examples, and all get the losses of all."""

from __future__ import annotations

from typing import TYPE_CHECKING

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
) -> list[RowLoss] | None:
    """Return the losses of `examples` in their order, the same on every rank; None if a rank has abandoned its part.

    `measure` returns the losses of some examples in their order, or None.
    """
    if ranks.size == 1:
        return measure(examples)
    places = shares([len(example.input_ids) for example in examples], ranks.size)
    own = [examples[place] for place in places[ranks.rank]]
    parts = ranks.gather(measure(own) if own else [])
    found: dict[int, RowLoss] = {}
    for share, part in zip(places, parts, strict=True):
        if part is None:
            return None
        found.update(zip(share, part, strict=True))
    return [found[place] for place in range(len(examples))]
