from __future__ import annotations

import pytest
from finetune_cli.cluster.kubectl import ClusterError, ForbiddenError, Kubectl
from finetune_cli.kept.cluster import existing_claims, log_lines, pods_of, reader_output

from tests.support.fake_kubectl import FakeKubectl

POD = {"metadata": {"namespace": "team", "name": "reader-1"}}


def phase(name: str) -> dict[str, object]:
    return {**POD, "status": {"phase": name}}


def test_the_pods_of_a_job_are_those_with_its_label(kubectl: FakeKubectl) -> None:
    kubectl.answer("pods", output={"items": [POD]})
    assert pods_of(Kubectl("team", "staging"), "numbers") == [POD]
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
    assert existing_claims(Kubectl(), ["a", "b", "a"]) == found


def test_no_claim_is_asked_for_without_a_name(kubectl: FakeKubectl) -> None:
    assert existing_claims(Kubectl(), []) == set()
    assert kubectl.calls() == []


def test_the_reader_is_deleted_after_its_log_is_read(kubectl: FakeKubectl) -> None:
    kubectl.answer("create", output=phase("Pending"))
    kubectl.answer("get", output=phase("Succeeded"))
    kubectl.answer("logs", output=b"content \xff\r\n")
    kubectl.answer("delete")
    assert reader_output(Kubectl(), POD, 60) == b"content \xff\r\n"
    assert kubectl.given() == [POD]
    verbs = [
        next(word for word in call if word in {"create", "get", "logs", "delete"}) for call in kubectl.calls()
    ]
    assert verbs == ["create", "get", "logs", "delete"]
    assert all("--namespace=team" in call for call in kubectl.calls())


def test_a_reader_that_does_not_end_in_time_is_deleted_and_explained(kubectl: FakeKubectl) -> None:
    state = {"state": {"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}}}
    kubectl.answer("create", output=phase("Pending"))
    kubectl.answer("get", output={**POD, "status": {"phase": "Pending", "containerStatuses": [state]}})
    kubectl.answer("delete")
    with pytest.raises(
        TimeoutError, match="within 0 s, found: ImagePullBackOff: no such image; free the claim"
    ):
        reader_output(Kubectl(), POD, 0)
    assert "delete" in kubectl.calls()[-1]


def test_a_pod_that_may_not_be_created_is_an_error_with_the_servers_words(kubectl: FakeKubectl) -> None:
    kubectl.answer("create", error="Error from server (Forbidden): pods is forbidden\n")
    with pytest.raises(ForbiddenError, match="pods is forbidden"):
        reader_output(Kubectl(), POD, 60)


def test_lines_come_one_by_one_and_a_failure_is_an_error(kubectl: FakeKubectl) -> None:
    kubectl.answer("logs", "good", output=b"a\nb\nno end")
    kubectl.answer("logs", error="Error: container is gone\n")
    assert list(log_lines(Kubectl(), "good", "trainer", follow=True)) == [b"a\n", b"b\n", b"no end"]
    assert "--follow" in kubectl.calls()[0]
    with pytest.raises(ClusterError, match="container is gone"):
        list(log_lines(Kubectl(), "bad", "trainer", follow=False))
