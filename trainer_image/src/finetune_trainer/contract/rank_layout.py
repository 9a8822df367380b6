"""The processes of TRAIN, as the run spec has them."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from finetune_trainer.contract.value import Value

MOST_RANKS = 64


class RankLayout(Value):
    """The processes that share each step of TRAIN: `per_node` in each of `nodes` pods, one for each GPU."""

    nodes: Annotated[int, Field(ge=1, le=MOST_RANKS)]
    per_node: Annotated[int, Field(ge=1, le=MOST_RANKS)]

    @model_validator(mode="after")
    def _bounded(self) -> RankLayout:
        if self.nodes * self.per_node > MOST_RANKS:
            raise ValueError(
                f"nodes x perNode must be at most {MOST_RANKS}, found {self.nodes} x {self.per_node}"
            )
        return self
