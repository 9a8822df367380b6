"""Pods of several nodes meet in any order, and find a host that another one has replaced."""

from __future__ import annotations

import socket
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest
from finetune_trainer.errors import Reason, StageError
from finetune_trainer.stages.train.ranks import meeting
from finetune_trainer.stages.train.ranks.meeting import Meeting, meet
from finetune_trainer.workspace.layout import WorkspaceLayout, write_json_atomically

HOST = "127.0.0.1"


def come(pool: ThreadPoolExecutor, folder: Path, index: int, nodes: int = 3) -> Future[Meeting]:
    return pool.submit(
        meet,
        WorkspaceLayout(folder),
        attempt=0,
        index=index,
        nodes=nodes,
        address=HOST,
        seconds=60,
    )


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0)])
def test_all_pods_find_one_place_whatever_their_order(tmp_path: Path, order: tuple[int, ...]) -> None:
    with ThreadPoolExecutor(3) as pool:
        waiting = [come(pool, tmp_path, index) for index in order]
        found = [each.result() for each in waiting]
    assert len({(each.address, each.port, each.token) for each in found}) == 1


def test_nobody_starts_before_the_last_pod_has_come(tmp_path: Path) -> None:
    with ThreadPoolExecutor(3) as pool:
        waiting = [come(pool, tmp_path, index) for index in (0, 1)]
        with pytest.raises(TimeoutError):
            waiting[0].result(timeout=1.5)
        assert not any(each.done() for each in waiting)
        last = come(pool, tmp_path, 2)
        assert last.result().token == waiting[0].result().token == waiting[1].result().token


def test_a_place_of_a_pod_that_is_gone_is_left(tmp_path: Path) -> None:
    layout = WorkspaceLayout(tmp_path)
    with socket.socket() as closed:
        closed.bind((HOST, 0))
        port = closed.getsockname()[1]
    write_json_atomically(layout.meeting(0), {"address": HOST, "port": port, "token": "old"})
    with ThreadPoolExecutor(2) as pool:
        other = come(pool, tmp_path, 1, nodes=2)
        host = come(pool, tmp_path, 0, nodes=2)
        assert other.result().token == host.result().token != "old"


@pytest.mark.parametrize(("index", "awaited"), [(0, "nodes 1, 2 of 3"), (1, "node 0 of 3")])
def test_a_pod_does_not_wait_forever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, index: int, awaited: str
) -> None:
    monkeypatch.setattr(meeting, "_LOOK_SECONDS", 0.01)
    with pytest.raises(StageError, match=awaited) as caught:
        meet(WorkspaceLayout(tmp_path), attempt=0, index=index, nodes=3, address=HOST, seconds=0.05)
    assert caught.value.reason is Reason.INTERRUPTED
