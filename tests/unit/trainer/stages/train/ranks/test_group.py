"""The ranks as one of them sees them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from finetune_trainer.stages.train.ranks.group import ALONE, ProcessGroup, is_lost_rank, joined
from torch import distributed

from tests.support.ranks import lone_group


def test_a_process_without_others_knows_only_its_own_values() -> None:
    assert (ALONE.rank, ALONE.size, ALONE.is_first) == (0, 1, True)
    assert ALONE.gather("a") == ["a"]
    assert ALONE.gather_numbers([1.5, 2]) == [[1.5, 2]]
    assert ALONE.from_first(lambda: 7) == 7
    assert not distributed.is_initialized()


def test_libraries_do_not_see_the_group(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else transformers would share the steps in its own way."""
    for name, value in {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    monkeypatch.setenv("MASTER_PORT", "0")
    with joined("cpu", 30) as ranks:
        assert not {"RANK", "LOCAL_RANK", "WORLD_SIZE"} & os.environ.keys()
        assert ranks.gather({"a": 1}) == [{"a": 1}]
        assert ranks.gather_numbers([1, 2.5]) == [[1, 2.5]]
        assert ranks.from_first(lambda: Path("a")) == Path("a")
        ranks.meet()
    assert not distributed.is_initialized()


def test_weights_are_gathered_in_a_group_of_their_own(tmp_path: Path) -> None:
    """Ranks that use other experts sum gradients and gather weights in another order."""
    with lone_group(tmp_path):
        found = ProcessGroup(30).mesh("cpu")
        assert (found.size(), found.get_local_rank(), found.device_type) == (1, 0, "cpu")
        assert found.get_group() is not distributed.group.WORLD


@pytest.mark.parametrize(
    ("error", "lost"),
    [
        (RuntimeError("[gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:4"), True),
        (distributed.DistNetworkError("the client socket has failed to connect"), True),
        (distributed.DistBackendError("NCCL error"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("gloo"), False),
    ],
)
def test_an_error_about_another_rank_is_told_from_an_own_one(error: Exception, *, lost: bool) -> None:
    assert is_lost_rank(error) is lost
