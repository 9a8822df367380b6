from __future__ import annotations

from typing import Any

import pytest
from finetune_operator.api.pod_merge import NO_DEFAULTS, PodSettings, merge_pods, node_rules
from finetune_operator.api.pods import parse_pod_defaults
from finetune_operator.api.spec import FineTuneJobSpec
from finetune_operator.api.stages import WORK_STAGES, Stage

from tests.support.operator import make_spec


def merged(
    defaults: dict[str, Any],
    stage: Stage = Stage.TRAIN,
    *,
    resources: dict[str, Any] | None = None,
    **own: Any,
) -> PodSettings:
    spec = make_spec(podTemplate=own, resources=resources or {})
    return merge_pods(parse_pod_defaults(defaults), FineTuneJobSpec.parse(spec), stage)


def test_the_job_comes_before_the_chart_and_the_stage_before_the_general_block() -> None:
    sources: list[dict[str, Any]] = [
        {"runtimeClassName": "chart"},
        {"train": {"runtimeClassName": "chart-train"}},
    ]
    chart = {**sources[0], **sources[1]}
    assert merged(sources[0]).runtime_class_name == "chart"
    assert merged(chart).runtime_class_name == "chart-train"
    assert merged(chart, runtimeClassName="job").runtime_class_name == "job"
    older = {"runtimeClassName": "resources"}
    assert merged(chart, resources=older, runtimeClassName="job").runtime_class_name == "resources"
    found = merged(chart, resources=older, runtimeClassName="job", train={"runtimeClassName": "own"})
    assert found.runtime_class_name == "own"
    assert merged(chart, Stage.MERGE, resources=older).runtime_class_name == "chart"


def test_labels_annotations_and_node_labels_are_merged_by_key() -> None:
    chart = {
        "labels": {"team": "chart", "cost": "1"},
        "annotations": {"note": "chart"},
        "nodeSelector": {"pool": "chart", "disk": "ssd"},
    }
    found = merged(chart, labels={"team": "job"}, train={"nodeSelector": {"pool": "own"}})
    assert found.labels == {"team": "job", "cost": "1"}
    assert found.annotations == {"note": "chart"}
    assert found.rules.node_selector == {"disk": "ssd", "pool": "own"}
    assert {label.key: label.field for label in found.rules.labels} == {
        "disk": "trainer.podDefaults.nodeSelector",
        "pool": "podTemplate.train.nodeSelector",
    }


def test_tolerations_and_pull_secrets_are_added_up_without_repetition() -> None:
    one, two = {"key": "a", "operator": "Exists"}, {"key": "b", "operator": "Exists"}
    chart = {"tolerations": [one], "imagePullSecrets": [{"name": "x"}, {"name": "y"}]}
    found = merged(chart, tolerations=[two, one], imagePullSecrets=[{"name": "y"}, {"name": "z"}])
    assert [item.key for item in found.rules.tolerations] == ["a", "b"]
    assert found.image_pull_secrets == ("x", "y", "z")


def terms(key: str) -> list[dict[str, Any]]:
    return [{"matchExpressions": [{"key": key, "operator": "Exists"}]}]


def test_terms_of_chart_and_job_both_hold_and_a_stages_replace_the_general_ones() -> None:
    chart = {"nodeSelectorTerms": terms("a"), "prepare": {"nodeSelectorTerms": terms("b")}}
    fields = {
        stage: [given.field for given in merged(chart, stage, nodeSelectorTerms=terms("c")).rules.terms]
        for stage in (Stage.PREPARE, Stage.TRAIN)
    }
    assert fields == {
        Stage.PREPARE: ["trainer.podDefaults.prepare.nodeSelectorTerms", "podTemplate.nodeSelectorTerms"],
        Stage.TRAIN: ["trainer.podDefaults.nodeSelectorTerms", "podTemplate.nodeSelectorTerms"],
    }


def test_node_fields_of_resources_are_for_train_and_the_priority_is_for_all() -> None:
    resources = {
        "nodeSelector": {"pool": "gpu"},
        "tolerations": [{"key": "a", "operator": "Exists"}],
        "runtimeClassName": "nvidia",
        "priorityClassName": "high",
    }
    for stage in WORK_STAGES:
        found = merged({}, stage, resources=resources)
        train = stage is Stage.TRAIN
        assert bool(found.rules.labels) == bool(found.rules.tolerations) == train
        assert (found.runtime_class_name, found.priority_class_name) == ("nvidia" if train else None, "high")


@pytest.mark.parametrize(
    ("chart", "own", "expected"),
    [
        ({"runAsUser": 7}, {}, ("Fixed", 7, None)),
        ({"runAsUser": 7}, {"fsGroup": 8}, ("Fixed", 7, 8)),
        ({"runAsUser": 7, "fsGroup": 8}, {"ids": "Assigned"}, ("Assigned", None, None)),
        ({"ids": "Assigned"}, {"runAsUser": 9}, ("Fixed", 9, None)),
        ({"ids": "Assigned"}, {"supplementalGroups": [5]}, ("Assigned", None, None)),
        ({"ids": "Assigned"}, {"ids": "Fixed"}, ("Fixed", None, None)),
    ],
)
def test_users_and_groups_of_the_job_replace_the_charts(
    chart: dict[str, Any], own: dict[str, Any], expected: tuple[str, int | None, int | None]
) -> None:
    found = merged({"securityContext": chart}, securityContext=own).security
    assert (found.ids or "Fixed", found.run_as_user, found.fs_group) == expected


def test_members_of_the_security_context_are_merged_one_by_one() -> None:
    chart = {"seLinuxOptions": {"level": "s0:c1"}, "supplementalGroups": [3]}
    own = {"supplementalGroups": [4], "seccompProfile": {"type": "Localhost", "localhostProfile": "p.json"}}
    found = merged({"securityContext": chart}, securityContext=own).security
    assert found.supplemental_groups == (4,)
    assert found.se_linux_options is not None
    assert found.seccomp_profile is not None


def test_rules_alone_are_those_of_the_whole_merge() -> None:
    spec = FineTuneJobSpec.parse(make_spec(podTemplate={"prepare": {"nodeSelector": {"a": "b"}}}))
    for stage in WORK_STAGES:
        assert node_rules(NO_DEFAULTS, spec, stage) == merge_pods(NO_DEFAULTS, spec, stage).rules
