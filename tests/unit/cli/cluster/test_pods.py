from __future__ import annotations

from pathlib import Path

import pytest
from finetune_cli.cluster.kubectl import ForbiddenError, Kubectl
from finetune_cli.cluster.pods import temporary_pod, why_waiting

from tests.support.fake_kubectl import FakeKubectl

MANIFEST = {"metadata": {"generateName": "reader-"}}


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeKubectl:
    """A kubectl on PATH that has created the pod reader-1."""
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    fake = FakeKubectl(tmp_path)
    fake.answer("create", output={"metadata": {"name": "reader-1"}})
    return fake


def verbs(server: FakeKubectl) -> list[str]:
    known = {"create", "get", "delete"}
    return [next(word for word in call if word in known) for call in server.calls()]


def test_a_pod_is_there_for_the_block_and_deleted_after_it(server: FakeKubectl) -> None:
    server.answer("get", output={"status": {"phase": "Pending"}}, times=1)
    server.answer("get", output={"status": {"phase": "Running"}})
    server.answer("delete")
    with temporary_pod(Kubectl(), MANIFEST, ("Running",), 60) as name:
        assert name == "reader-1"
        assert verbs(server) == ["create", "get", "get"]
    assert server.given() == [MANIFEST]
    assert verbs(server)[-1] == "delete"
    assert "reader-1" in server.calls()[-1]


def test_a_pod_that_does_not_start_in_time_is_deleted_and_explained(server: FakeKubectl) -> None:
    state = {"state": {"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}}}
    server.answer("get", output={"status": {"phase": "Pending", "containerStatuses": [state]}})
    server.answer("delete")
    with (
        pytest.raises(TimeoutError, match="must be Running within 0 s, found: ImagePullBackOff: no such"),
        temporary_pod(Kubectl(), MANIFEST, ("Running",), 0),
    ):
        raise AssertionError
    assert verbs(server)[-1] == "delete"


def test_the_first_error_is_not_hidden_by_that_of_the_deletion(server: FakeKubectl) -> None:
    server.answer("get", output={"status": {"phase": "Running"}})
    server.answer("delete", error="Error from server (Forbidden): pods is forbidden")
    with pytest.raises(KeyError, match="first"), temporary_pod(Kubectl(), MANIFEST, ("Running",), 60):
        raise KeyError("first")
    with pytest.raises(ForbiddenError), temporary_pod(Kubectl(), MANIFEST, ("Running",), 60):
        pass


def test_a_pod_without_a_node_says_what_the_scheduler_says() -> None:
    condition = {"type": "PodScheduled", "status": "False", "message": "0/3 nodes are available"}
    assert why_waiting({"status": {"conditions": [condition]}}) == "0/3 nodes are available"
    assert why_waiting({}).startswith("phase Pending")
