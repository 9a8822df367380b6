from __future__ import annotations

import pytest
from finetune_cli.errors import UsageError
from finetune_cli.kept.cluster import Cluster, why_waiting

from tests.support.fake_kubectl import FakeKubectl

POD = {"metadata": {"namespace": "team", "name": "reader-1"}}


def phase(name: str) -> dict[str, object]:
    return {**POD, "status": {"phase": name}}


def test_context_and_namespace_are_passed(kubectl: FakeKubectl) -> None:
    kubectl.answer("pods", output={"items": [POD]})
    assert Cluster("staging", "team").pods("numbers") == [POD]
    assert kubectl.calls() == [
        [
            *("--context=staging", "--namespace=team", "get", "pods", "-l", "finetune.dev/job=numbers"),
            *("--output=json", "--request-timeout=30s"),
        ]
    ]


@pytest.mark.parametrize(
    ("output", "found"),
    [
        (b"", set()),
        ({"metadata": {"name": "a"}}, {"a"}),
        (
            {"items": [{"metadata": {"name": "a"}}, {"metadata": {"name": "b", "deletionTimestamp": "x"}}]},
            {"a"},
        ),
    ],
)
def test_claims_that_are_missing_or_being_deleted_do_not_count(
    kubectl: FakeKubectl, output: object, found: set[str]
) -> None:
    kubectl.answer("persistentvolumeclaims", output=output)
    assert Cluster().claims(["a", "b", "a"]) == found


def test_the_reader_is_deleted_after_its_log_is_read(kubectl: FakeKubectl) -> None:
    kubectl.answer("create", output=phase("Pending"))
    kubectl.answer("get", output=phase("Succeeded"))
    kubectl.answer("logs", output=b"content")
    kubectl.answer("delete")
    assert Cluster().run_reader(POD, 60) == b"content"
    assert kubectl.given() == [POD]
    verbs = [
        next(word for word in call if word in {"create", "get", "logs", "delete"}) for call in kubectl.calls()
    ]
    assert verbs == ["create", "get", "logs", "delete"]
    assert "reader-1" in kubectl.calls()[-1]


def test_a_reader_that_does_not_end_in_time_is_deleted_and_explained(kubectl: FakeKubectl) -> None:
    state = {"state": {"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}}}
    kubectl.answer("create", output=phase("Pending"))
    kubectl.answer("get", output={**POD, "status": {"phase": "Pending", "containerStatuses": [state]}})
    kubectl.answer("delete")
    with pytest.raises(
        UsageError, match="within 0 s, found: ImagePullBackOff: no such image; free the claim"
    ):
        Cluster().run_reader(POD, 0)
    assert "delete" in kubectl.calls()[-1]


def test_a_pod_that_may_not_be_created_is_an_error_with_the_servers_words(kubectl: FakeKubectl) -> None:
    kubectl.answer("create", error="Error from server (Forbidden): pods is forbidden\n")
    with pytest.raises(UsageError, match="pods is forbidden"):
        Cluster().run_reader(POD, 60)


def test_lines_come_one_by_one_and_a_failure_is_an_error(kubectl: FakeKubectl) -> None:
    kubectl.answer("logs", "good", output=b"a\nb\nno end")
    kubectl.answer("logs", error="Error: container is gone\n")
    assert list(Cluster().lines("good", "trainer", follow=True)) == [b"a\n", b"b\n", b"no end"]
    assert "--follow" in kubectl.calls()[0]
    with pytest.raises(UsageError, match="container is gone"):
        list(Cluster().lines("bad", "trainer", follow=False))


def test_a_pod_without_a_node_says_what_the_scheduler_says() -> None:
    condition = {"type": "PodScheduled", "status": "False", "message": "0/3 nodes are available"}
    assert why_waiting({"status": {"conditions": [condition]}}) == "0/3 nodes are available"
    assert why_waiting({}).startswith("phase Pending")
