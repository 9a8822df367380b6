from __future__ import annotations

from typing import Any

import pytest
from finetune_operator.api.pods import (
    PodDefaultsError,
    PodTemplate,
    parse_pod_defaults,
    reserved_keys,
    why_reserved,
)
from finetune_operator.api.stages import WORK_STAGES


def test_an_empty_text_means_that_a_value_is_not_set() -> None:
    document = {"runtimeClassName": "", "cpuLimit": "", "train": {"schedulerName": ""}, "nodeSelector": {}}
    assert parse_pod_defaults(document) == PodTemplate()


def test_each_stage_has_its_own_block() -> None:
    found = parse_pod_defaults({"train": {"cpuLimit": 4}, "merge": {"cpuLimit": "Request"}})
    assert [found.of(stage).cpu_limit for stage in WORK_STAGES] == [None, "4", "Request"]


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ({"securityContext": {"runAsUser": 0}}, "podDefaults.securityContext.runAsUser"),
        ({"securityContext": {"fsGroup": 0}}, "podDefaults.securityContext.fsGroup"),
        (
            {"securityContext": {"supplementalGroups": [0]}},
            "podDefaults.securityContext.supplementalGroups.0",
        ),
        ({"securityContext": {"privileged": True}}, "podDefaults.securityContext.privileged"),
        ({"securityContext": {"runAsNonRoot": False}}, "podDefaults.securityContext.runAsNonRoot"),
        ({"securityContext": {"capabilities": {"add": ["SYS_ADMIN"]}}}, "securityContext.capabilities"),
        ({"securityContext": {"seccompProfile": {"type": "Unconfined"}}}, "seccompProfile.type"),
        ({"securityContext": {"appArmorProfile": {"type": "Unconfined"}}}, "appArmorProfile.type"),
        (
            {"securityContext": {"seccompProfile": {"type": "Localhost"}}},
            "must have localhostProfile exactly",
        ),
        (
            {"securityContext": {"seccompProfile": {"type": "Localhost", "localhostProfile": "../x"}}},
            "must be a relative path",
        ),
        ({"securityContext": {"seLinuxOptions": {"type": "spc_t"}}}, "seLinuxOptions.type"),
        ({"securityContext": {"seLinuxOptions": {"user": "root"}}}, "seLinuxOptions.user"),
        (
            {"securityContext": {"ids": "Assigned", "fsGroup": 5}},
            "must have no runAsUser, runAsGroup and fsGroup",
        ),
        ({"volumes": []}, "podDefaults.volumes"),
        ({"train": {"containers": []}}, "podDefaults.train.containers"),
        ({"train": {"securityContext": {}}}, "podDefaults.train.securityContext"),
        ({"hostNetwork": True}, "podDefaults.hostNetwork"),
        ({"cpuLimit": "0"}, "must be more than 0"),
        ({"cpuLimit": "lots"}, "podDefaults.cpuLimit"),
        ({"nodeSelectorTerms": [{"matchExpressions": []}]}, "matchExpressions"),
        (
            {"nodeSelectorTerms": [{"matchExpressions": [{"key": "a", "operator": "In"}]}]},
            "must have values with the operator In",
        ),
        (
            {"nodeSelectorTerms": [{"matchExpressions": [{"key": "a", "operator": "Gt", "values": ["x"]}]}]},
            "must have one whole number",
        ),
        (
            {
                "nodeSelectorTerms": [
                    {"matchExpressions": [{"key": "a", "operator": "Exists", "values": [""]}]}
                ]
            },
            "must have no values",
        ),
        ({"labels": {"finetune.dev/job": "x"}}, "podDefaults.labels must not use keys that belong to"),
        ({"merge": {"annotations": {"finetune.dev/run": "{}"}}}, "podDefaults.merge.annotations must not"),
        ({"labels": {"app.kubernetes.io/managed-by": "x"}}, "podDefaults.labels must not use keys"),
        ({"train": {"labels": {"job-name": "x"}}}, "podDefaults.train.labels must not use keys"),
        ({"objectLabels": {"kueue.x-k8s.io/queue-name": "q"}}, "of Kueue, because it would suspend"),
    ],
)
def test_unusable_defaults_name_the_member(document: dict[str, Any], words: str) -> None:
    with pytest.raises(PodDefaultsError) as caught:
        parse_pod_defaults(document)
    assert words in str(caught.value)


def test_recommended_labels_that_the_operator_does_not_use_are_allowed() -> None:
    labels = {"app.kubernetes.io/part-of": "platform", "app.kubernetes.io/version": "1"}
    assert not list(reserved_keys(PodTemplate(labels=labels, object_labels=labels)))


def test_a_queue_of_pods_is_allowed_but_not_one_of_jobs() -> None:
    queue = {"kueue.x-k8s.io/queue-name": "q"}
    assert not list(reserved_keys(PodTemplate(labels=queue)))
    ((field, key),) = reserved_keys(PodTemplate(object_labels=queue))
    assert (field, why_reserved(key).partition(",")[0]) == ("objectLabels", "of Kueue")
