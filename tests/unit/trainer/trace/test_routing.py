from __future__ import annotations

import torch
from finetune_trainer.trace.routing import even_routing
from torch._subclasses.fake_tensor import FakeTensorMode


def rows_by_expert(tokens: int, chosen: int, total: int, experts: int | None) -> dict[int, int]:
    """Return the rows of each expert, as the code of transformers asks for them."""
    with FakeTensorMode(allow_non_fake_inputs=True), even_routing(experts):
        index = torch.empty((tokens, chosen), dtype=torch.long)
        mask = torch.nn.functional.one_hot(index, num_classes=total).permute(2, 1, 0)
        hit = torch.greater(mask.sum(dim=(-1, -2)), 0).nonzero()
        found = {}
        for expert in hit:
            places, rows = torch.where(mask[expert[0]])
            assert places.shape == rows.shape
            # Code takes the number in one of two ways.
            assert expert[0] == expert.item()
            found[expert[0]] = rows.shape[0]
    return found


def test_a_few_experts_get_all_rows_evenly() -> None:
    assert rows_by_expert(10, 2, 9, 4) == dict.fromkeys(range(4), 5)


def test_all_experts_get_rows_if_asked_for() -> None:
    assert rows_by_expert(12, 2, 8, None) == dict.fromkeys(range(8), 3)


def test_fewer_experts_than_asked_for_share_the_rows() -> None:
    assert rows_by_expert(7, 1, 2, 4) == {0: 4, 1: 4}


def test_a_place_without_an_expert_gets_no_rows() -> None:
    """Nemotron counts one place more than it has experts, and makes a vector of the hits."""
    with FakeTensorMode(allow_non_fake_inputs=True), even_routing():
        few, many = (torch.empty(size, dtype=torch.long).nonzero().squeeze(-1) for size in (5, 129))
    assert [expert.item() for expert in few] == [0, 1, 2, 3]
    assert [expert.item() for expert in many] == list(range(8))


def test_other_searches_find_what_is_there() -> None:
    with even_routing():
        assert torch.eye(2).nonzero().tolist() == [[0, 0], [1, 1]]
        assert torch.where(torch.tensor([True, False]), 1, 0).tolist() == [1, 0]
    assert torch.tensor([0, 1]).nonzero().tolist() == [[1]]
