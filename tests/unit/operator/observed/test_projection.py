from __future__ import annotations

from typing import Any

import pytest
from finetune_operator.api.formats import parse_time
from finetune_operator.api.stages import Stage
from finetune_operator.observed.ownership import key_of
from finetune_operator.observed.projection import (
    project_child,
    project_claim,
    project_job,
    project_pod,
)

CREATED = "2026-11-24T09:00:00Z"


def owner(kind: str, uid: str) -> list[dict[str, Any]]:
    return [{"kind": "Other", "uid": "x"}, {"kind": kind, "uid": uid, "controller": True}]


def make_pod(status: dict[str, Any], **metadata: Any) -> dict[str, Any]:
    return {
        "metadata": {
            "name": "p",
            "namespace": "team",
            "uid": "u",
            "resourceVersion": "7",
            "creationTimestamp": CREATED,
            "labels": {"finetune.dev/job": "demo"},
            "ownerReferences": owner("Job", "j"),
            **metadata,
        },
        "spec": {"nodeName": "node1"},
        "status": status,
    }


def container(state: dict[str, Any], name: str = "trainer") -> dict[str, Any]:
    return {"name": name, "state": state}


ENDED = {"terminated": {"exitCode": 65, "reason": "Error", "message": "{}", "finishedAt": CREATED}}


def test_a_finetunejob_without_status_is_projected() -> None:
    metadata = {
        "name": "demo",
        "namespace": "team",
        "uid": "u",
        "resourceVersion": "5",
        "creationTimestamp": CREATED,
        "deletionTimestamp": CREATED,
    }
    job = project_job({"metadata": metadata, "spec": {"suspend": True}})
    assert (job.key, job.deleting, job.status, job.spec) == (("team", "demo"), True, {}, {"suspend": True})


def test_an_ended_trainer_is_recognized_while_another_container_runs() -> None:
    statuses = [container({"running": {}}, "sidecar"), container(ENDED)]
    pod = project_pod(make_pod({"phase": "Running", "podIP": "10.0.0.1", "containerStatuses": statuses}))
    assert pod is not None
    assert pod.end is not None
    assert (pod.end.exit_code, pod.end.message) == (65, "{}")
    assert not pod.idle
    assert not pod.running


def test_a_pod_on_the_network_of_its_node_is_recognized() -> None:
    body = make_pod({"phase": "Running"})
    plain = project_pod(body)
    body["spec"] = {**body.get("spec", {}), "hostNetwork": True}
    hosted = project_pod(body)
    assert plain is not None
    assert hosted is not None
    assert (plain.host_network, hosted.host_network) == (False, True)


def test_a_pod_is_idle_only_after_all_containers_and_native_sidecars_have_ended() -> None:
    ended = project_pod(make_pod({"containerStatuses": [container(ENDED)]}))
    assert ended is not None
    assert ended.idle
    sidecar = project_pod(
        make_pod(
            {
                "containerStatuses": [container(ENDED)],
                "initContainerStatuses": [container({"running": {}}, "proxy")],
            }
        )
    )
    assert sidecar is not None
    assert not sidecar.idle


def test_disruption_scheduling_and_waiting_are_read_from_the_pods_status() -> None:
    pod = project_pod(
        make_pod(
            {
                "conditions": [
                    {"type": "DisruptionTarget", "status": "True"},
                    {
                        "type": "PodScheduled",
                        "status": "False",
                        "reason": "Unschedulable",
                        "message": "0/1 nodes are available",
                    },
                ],
                "containerStatuses": [
                    container({"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}})
                ],
            }
        )
    )
    assert pod is not None
    assert pod.disrupted
    assert pod.unschedulable == "0/1 nodes are available"
    assert pod.waiting == ("ImagePullBackOff", "no such image")


def test_a_trainer_that_waits_for_an_injected_container_says_which_one() -> None:
    waiting = container({"waiting": {"reason": "PodInitializing"}})

    def cause(*states: dict[str, Any]) -> tuple[str, str] | None:
        named = [container(state, f"init{number}") for number, state in enumerate(states)]
        pod = project_pod(make_pod({"containerStatuses": [waiting], "initContainerStatuses": named}))
        assert pod is not None
        return pod.waiting

    looping = {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 10s"}}
    assert cause({"terminated": {}}, looping) == ("Init:CrashLoopBackOff", "container init1: back-off 10s")
    assert cause({"running": {}}, {"waiting": {"reason": "PodInitializing"}}) == ("PodInitializing", "")
    assert cause() == ("PodInitializing", "")


def make_child(name: str = "demo-train-2", **metadata: Any) -> dict[str, Any]:
    references = [
        {"kind": "FineTuneJob", "name": "demo", "uid": "f", "controller": True},
    ]
    labels = {"finetune.dev/job": "demo", "finetune.dev/stage": "train", "finetune.dev/attempt": "2"}
    body = make_pod({}, name=name, ownerReferences=references, labels=labels)
    return {"metadata": {**body["metadata"], **metadata}, "spec": {"suspend": True}}


@pytest.mark.parametrize("labels", [{}, {"finetune.dev/job": "x", "finetune.dev/stage": "merge"}])
def test_a_child_is_known_by_owner_and_name_whatever_its_labels_say(labels: dict[str, str]) -> None:
    body = make_child(labels=labels)
    child = project_child(body)
    assert child is not None
    assert (child.stage, child.attempt, child.watched) == (Stage.TRAIN, 2, bool(labels))
    assert key_of(body) == ("team", "demo")
    references = [{"kind": "Job", "name": "demo-train-2", "uid": "j", "controller": True}]
    pod = make_pod({}, labels=labels, ownerReferences=references)
    assert key_of(pod) == ("team", "demo")
    projected = project_pod(pod)
    assert projected is not None
    assert projected.watched == bool(labels)


@pytest.mark.parametrize(
    ("annotations", "held"),
    [
        ({"finetune.dev/suspended-by-operator": "true"}, True),
        ({"finetune.dev/suspended-by-operator": "false"}, False),
        ({}, True),
    ],
)
def test_a_suspension_is_the_operators_if_recorded_or_if_from_an_older_operator(
    annotations: dict[str, str],
    held: bool,  # noqa: FBT001 -- a case's outcome
) -> None:
    child = project_child(make_child(annotations=annotations))
    assert child is not None
    assert child.held == held


@pytest.mark.parametrize(
    ("queue", "suspend", "condition", "suspended"),
    [
        ("gpus", True, None, True),
        ("gpus", True, "True", True),
        # The queue has resumed it, but the Job controller has not yet.
        ("gpus", False, "True", True),
        ("gpus", False, "False", False),
        ("", False, "True", False),
    ],
)
def test_a_job_of_a_queue_is_resumed_when_the_job_controller_says_so(
    queue: str,
    suspend: bool,  # noqa: FBT001 -- a case's input
    condition: str | None,
    suspended: bool,  # noqa: FBT001 -- a case's outcome
) -> None:
    labels = {"finetune.dev/job": "demo", **({"kueue.x-k8s.io/queue-name": queue} if queue else {})}
    body = make_child(labels=labels, annotations={"finetune.dev/suspended-by-operator": "false"})
    change = {"type": "Suspended", "status": condition, "lastTransitionTime": "2026-11-24T10:00:00Z"}
    body = {
        **body,
        "spec": {"suspend": suspend},
        "status": {"conditions": [change] if condition is not None else []},
    }
    child = project_child(body)
    assert child is not None
    assert (child.queue, child.suspended, child.held) == (queue, suspended, False)
    resumed = parse_time("2026-11-24T10:00:00Z")
    assert child.started == (resumed if condition == "False" else child.created)


def test_a_pods_times_of_scheduling_and_deletion_are_read() -> None:
    scheduled = {"type": "PodScheduled", "status": "True", "lastTransitionTime": CREATED}
    pod = project_pod(make_pod({"conditions": [scheduled]}, deletionTimestamp="2026-11-24T09:02:00Z"))
    assert pod is not None
    assert pod.scheduled == parse_time(CREATED)
    assert pod.deletion_time == parse_time("2026-11-24T09:02:00Z")
    other = project_pod(make_pod({"conditions": [{**scheduled, "status": "False"}]}))
    assert other is not None
    assert (other.scheduled, other.deletion_time) == (None, None)


def test_objects_of_other_owners_with_our_labels_are_no_children() -> None:
    loose = make_pod({}, ownerReferences=[])
    assert project_pod(loose) is None
    assert key_of(loose) == ("team", "demo")
    assert key_of(make_pod({}, labels={})) is None
    labels = {"finetune.dev/job": "demo", "finetune.dev/stage": "train", "finetune.dev/attempt": "2"}
    body = {
        **make_pod({}, labels=labels, ownerReferences=owner("FineTuneJob", "f")),
        "spec": {
            "suspend": True,
            "template": {
                "spec": {"containers": [{"name": "proxy", "image": "p"}, {"name": "trainer", "image": "t"}]}
            },
        },
    }
    child = project_child(body)
    assert child is not None
    assert child.image == "t"
    bare = project_child({**body, "spec": {}})
    assert bare is not None
    assert bare.image == ""
    assert (child.stage, child.attempt, child.owner_uid, child.suspended) == (Stage.TRAIN, 2, "f", True)
    assert not child.finished
    for wrong in ({"finetune.dev/stage": "cook"}, {"finetune.dev/attempt": "many"}):
        assert (
            project_child({**body, "metadata": {**body["metadata"], "labels": {**labels, **wrong}}}) is None
        )
    assert project_child({**body, "metadata": {**body["metadata"], "ownerReferences": []}}) is None
    assert project_claim(loose) is None


def test_a_failed_batch_job_carries_its_message() -> None:
    labels = {"finetune.dev/job": "demo", "finetune.dev/stage": "merge", "finetune.dev/attempt": "0"}
    body = make_pod(
        {"conditions": [{"type": "Failed", "status": "True", "message": "BackoffLimitExceeded"}]},
        labels=labels,
        ownerReferences=owner("FineTuneJob", "f"),
    )
    child = project_child(body)
    assert child is not None
    assert child.finished
    assert child.failure == "BackoffLimitExceeded"
