from __future__ import annotations

from typing import Any

from finetune_cli.kept.places import Place
from finetune_cli.kept.reader_pod import reader_pod
from finetune_cli.kept.reading import spec_of

from tests.support.kept_jobs import IMAGE, job


def build(place: Place, node: str = "", **changes: Any) -> dict[str, Any]:
    given = job(**changes)
    return reader_pod(given, spec_of(given), place, IMAGE, ["train"], seconds=60, node=node)


WORKSPACE = Place("numbers-workspace", "", "the workspace")


def test_the_pod_reads_one_claim_and_can_do_nothing_else() -> None:
    pod = build(WORKSPACE)["spec"]
    (container,) = pod["containers"]
    assert container["args"] == ["kept", "/kept", "train"]
    assert container["volumeMounts"] == [{"name": "kept", "mountPath": "/kept", "readOnly": True}]
    assert pod["volumes"] == [{"name": "kept", "persistentVolumeClaim": {"claimName": "numbers-workspace"}}]
    assert "envFrom" not in container
    assert pod["automountServiceAccountToken"] is False
    assert pod["activeDeadlineSeconds"] == 60


def test_the_pod_meets_the_restricted_pod_security_level() -> None:
    pod = build(WORKSPACE)["spec"]
    security = pod["containers"][0]["securityContext"]
    assert security["capabilities"] == {"drop": ["ALL"]}
    assert security["allowPrivilegeEscalation"] is False
    for context in (security, pod["securityContext"]):
        assert context["runAsNonRoot"] is True
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}


def test_the_pod_has_the_jobs_users_groups_secrets_and_tolerations() -> None:
    template = {
        "securityContext": {"runAsUser": 1000, "fsGroup": 2000, "supplementalGroups": [3000]},
        "imagePullSecrets": [{"name": "registry"}],
        "serviceAccountName": "readers",
        "tolerations": [{"key": "team", "operator": "Exists"}],
    }
    pod = build(WORKSPACE, podTemplate=template)["spec"]
    context = pod["securityContext"]
    assert (context["runAsUser"], context["fsGroup"], context["supplementalGroups"]) == (1000, 2000, [3000])
    assert pod["imagePullSecrets"] == [{"name": "registry"}]
    assert pod["serviceAccountName"] == "readers"
    assert {"key": "team", "operator": "Exists"} in pod["tolerations"]
    assert any(each["key"] == "nvidia.com/gpu" for each in pod["tolerations"])


def test_a_cluster_that_assigns_users_may_do_so() -> None:
    context = build(WORKSPACE, podTemplate={"securityContext": {"ids": "Assigned"}})["spec"][
        "securityContext"
    ]
    assert not {"runAsUser", "runAsGroup", "fsGroup"} & context.keys()


def test_the_operator_does_not_take_the_pod_for_a_stage_and_it_goes_with_the_job() -> None:
    metadata = build(WORKSPACE)["metadata"]
    assert not [label for label in metadata["labels"] if label.startswith("finetune.dev/")]
    (owner,) = metadata["ownerReferences"]
    assert (owner["kind"], owner["uid"]) == ("FineTuneJob", "1-2-3")
    assert not owner.get("controller")


def test_a_folder_of_a_claim_and_the_node_that_has_it() -> None:
    pod = build(Place("models", "a/b", "the destination"), node="node-1")["spec"]
    assert pod["containers"][0]["args"][1] == "/kept/a/b"
    terms = pod["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"][
        "nodeSelectorTerms"
    ]
    assert terms == [{"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["node-1"]}]}]
