"""Terms, and sizes as the allocator rounds them."""

from __future__ import annotations

import pytest
from finetune_operator.sizing.memory.terms import Estimate, MemoryItem, Phase, Term, allocated, blocks


@pytest.mark.parametrize(("size", "taken"), [(0, 0), (1, 512), (512, 512), (513, 1024)])
def test_the_allocator_hands_out_multiples_of_512_bytes(size: int, taken: int) -> None:
    assert allocated(size) == taken


@pytest.mark.parametrize(("elements", "count"), [(0, 0), (1, 1), (64, 1), (65, 2), (128, 2)])
def test_a_partly_filled_block_counts_as_one(elements: int, count: int) -> None:
    assert blocks(elements, 64) == count


def test_an_item_becomes_a_term_of_a_phase() -> None:
    item = MemoryItem("context", 7, "by hand", visible=False)
    assert item.during(Phase.DEVICE) == Term("context", 7, Phase.DEVICE, "by hand", visible=False)


def test_hidden_and_device_terms_are_not_in_the_visible_peak() -> None:
    terms = (
        Term("weights", 100, Phase.LOAD, ""),
        Term("weights", 100, Phase.LOSS, ""),
        Term("logits", 200, Phase.LOSS, ""),
        Term("workspace", 50, Phase.LOSS, "", visible=False),
        Term("context", 1000, Phase.DEVICE, "", visible=False),
    )
    phases = {Phase.LOAD: 100, Phase.LOSS: 350, Phase.DEVICE: 1000}
    found = Estimate(terms, phases, 350, 1350, 1300, 1400, Phase.LOSS, "stack", "none")
    assert found.visible_peak_bytes == 300
    assert [term.name for term in found.largest_terms()] == ["logits", "weights", "workspace"]
