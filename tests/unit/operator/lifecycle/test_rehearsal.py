from __future__ import annotations

from typing import Any

from finetune_operator.api.spec import FineTuneJobSpec
from finetune_operator.lifecycle.rehearsal import rehearsal_objects, settings_digest

from tests.support.operator import NOW, SETTINGS, make_job, make_spec


def objects(**changes: Any) -> dict[str, dict[str, Any]]:
    spec = make_spec(**changes)
    built = rehearsal_objects(make_job(spec=spec), FineTuneJobSpec.parse(spec), SETTINGS, NOW)
    return {body["metadata"]["name"]: body for body in built}


def test_the_claim_and_the_first_job_of_each_stage_are_built_with_the_users_settings() -> None:
    labels = {"team": "a"}
    found = objects(podTemplate={"objectLabels": labels, "train": {"labels": {"only": "train"}}})
    assert list(found) == ["demo-workspace", "demo-prepare-0", "demo-train-0", "demo-merge-0"]
    assert all(body["metadata"]["labels"]["team"] == "a" for body in found.values())
    pods = {
        name: body["spec"]["template"]["metadata"]["labels"]
        for name, body in found.items()
        if "template" in body["spec"]
    }
    assert [name for name, each in pods.items() if each.get("only")] == ["demo-train-0"]


def test_an_existing_claim_is_not_built() -> None:
    assert "demo-workspace" not in objects(workspace={"existingClaim": "scratch"})


def test_only_settings_of_the_objects_are_new() -> None:
    def digest(**changes: Any) -> str:
        return settings_digest(FineTuneJobSpec.parse(make_spec(**changes)))

    own = digest(podTemplate={"labels": {"a": "b"}})
    assert digest() == "" == digest(training={"epochs": 2}, resources={"gpus": 1})
    assert own
    assert own == digest(podTemplate={"labels": {"a": "b"}}, training={"epochs": 2})
    assert own != digest(podTemplate={"labels": {"a": "c"}})
    assert len({digest(), digest(queueName="q"), digest(cpuQueueName="q")}) == 3
