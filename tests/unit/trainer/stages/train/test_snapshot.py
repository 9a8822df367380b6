from __future__ import annotations

from typing import Any

import pytest
import torch
from finetune_trainer.errors import Reason, StageError
from finetune_trainer.stages.train.snapshot import HostMemory, distinct_tensors

from tests.support.snapshots import snapshot


def tree() -> dict[str, Any]:
    shared = torch.arange(256, dtype=torch.float32)
    return {
        "values": {"a": torch.randn(3, 5), "b": torch.randn(7).to(torch.bfloat16)},
        "state": [
            {"step": torch.tensor(3.0), "quantized": torch.arange(9, dtype=torch.uint8), "map": shared},
            ({"map": shared, "empty": torch.empty(0, 4)}, 1.5, None),
        ],
    }


def test_a_copy_has_the_same_values_and_shares_nothing_with_the_original() -> None:
    torch.manual_seed(3)
    original = tree()
    copied = HostMemory().copy(original)
    wanted = [tensor.clone() for tensor in distinct_tensors(original)]
    for tensor in distinct_tensors(original):
        tensor.zero_()
    found = distinct_tensors(copied)
    assert [value.dtype for value in found] == [value.dtype for value in wanted]
    for value, other in zip(found, wanted, strict=True):
        assert torch.equal(value, other)
    assert copied["state"][1][1:] == (1.5, None)


def test_a_tensor_that_occurs_twice_is_copied_once() -> None:
    copied = HostMemory().copy(tree())
    assert copied["state"][0]["map"] is copied["state"][1][0]["map"]


def test_every_copy_has_a_storage_of_its_own_size() -> None:
    """Torch saves whole storages, so a shared one would be saved with every tensor."""
    for tensor in distinct_tensors(HostMemory().copy(tree())):
        assert tensor.untyped_storage().nbytes() == tensor.nbytes


def test_the_memory_is_used_again_for_equal_sizes_and_replaced_for_others() -> None:
    memory = HostMemory()
    first = memory.copy({"a": torch.ones(1000)})["a"]
    second = memory.copy({"a": torch.zeros(1000)})["a"]
    assert first.data_ptr() == second.data_ptr()
    assert memory.copy({"a": torch.ones(2000)})["a"].sum() == 2000


def test_large_states_are_copied_to_several_pieces_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("finetune_trainer.stages.train.snapshot._PIECE", 4096)
    original = {str(size): torch.randn(size) for size in (500, 500, 3, 5000, 700, 1)}
    copied = HostMemory().copy(original)
    assert all(torch.equal(copied[name], value) for name, value in original.items())


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("place", ["adapter", "optimizer"])
def test_a_state_that_is_not_finite_is_refused_with_its_step(value: float, place: str) -> None:
    found = snapshot(step=7)
    found.require_finite()
    for tensor in distinct_tensors(getattr(found, place)):
        if tensor.is_floating_point():
            tensor.view(-1)[-1] = value
    with pytest.raises(StageError, match=f"in the {place} after step 7") as caught:
        found.require_finite()
    assert caught.value.reason is Reason.NON_FINITE_LOSS
