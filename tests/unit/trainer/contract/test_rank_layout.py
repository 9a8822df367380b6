from __future__ import annotations

import pytest
from finetune_trainer.contract.rank_layout import MOST_RANKS, RankLayout
from pydantic import ValidationError


def test_as_many_ranks_as_allowed_may_be_in_any_number_of_pods() -> None:
    for nodes in (1, 8, MOST_RANKS):
        layout = RankLayout(nodes=nodes, per_node=MOST_RANKS // nodes)
        assert layout.nodes * layout.per_node == MOST_RANKS


def test_more_ranks_are_refused_with_both_numbers() -> None:
    with pytest.raises(ValidationError, match="must be at most 64, found 9 x 8"):
        RankLayout(nodes=9, per_node=8)
    with pytest.raises(ValidationError):
        RankLayout(nodes=0, per_node=1)
