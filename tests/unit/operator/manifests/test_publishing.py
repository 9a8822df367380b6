"""The pods of a job with several destinations: who has which credentials, and who sees which volume."""

from __future__ import annotations

from typing import Any

import kubernetes_validate
import pytest
from finetune_operator.api.spec import FineTuneJobSpec
from finetune_operator.api.stages import WORK_STAGES, Stage
from finetune_operator.api.tracking import Tracking
from finetune_operator.contract.tracking import choose_trackers
from finetune_operator.manifests.jobs import build_job
from finetune_operator.settings import TrainerSettings
from finetune_operator.sizing.hosts import HostNeeds

from tests.support.operator import make_job, make_spec

TRAINER = TrainerSettings(image="registry.example/finetune/trainer:1")
HOST = HostNeeds("2", 8 * 2**30, "because", 2**28, 2**30)
SPEC = make_spec(
    model={"source": {"s3": {"uri": "s3://base/model", "secretRef": {"name": "read"}}}},
    modelCache={"claimName": "cache"},
    output={
        "destinations": [
            {"name": "bucket", "s3": {"uri": "s3://models/bot", "secretRef": {"name": "write"}}},
            {"name": "claim", "persistentVolumeClaim": {"claimName": "artifacts"}},
        ],
        "reports": "Destinations",
    },
    network={"proxySecretRef": {"name": "proxy", "key": "url"}},
)


def pod(stage: Stage, spec: dict[str, Any] = SPEC) -> dict[str, Any]:
    body = build_job(
        make_job(spec), FineTuneJobSpec.parse(spec), stage, 0, {"version": "1.9"}, TRAINER, host=HOST
    )
    kubernetes_validate.validate(body, "1.32", strict=True)
    found: dict[str, Any] = body["spec"]["template"]["spec"]
    return found


def containers(stage: Stage, spec: dict[str, Any] = SPEC) -> dict[str, dict[str, Any]]:
    found = pod(stage, spec)
    return {each["name"]: each for each in [*found.get("initContainers", ()), *found["containers"]]}


def secrets_of(container: dict[str, Any]) -> set[str]:
    whole = {entry["secretRef"]["name"] for entry in container.get("envFrom", ())}
    single = {
        entry["valueFrom"]["secretKeyRef"]["name"] for entry in container["env"] if "valueFrom" in entry
    }
    return whole | single


def step_of(container: dict[str, Any]) -> str | None:
    return next((entry["value"] for entry in container["env"] if entry["name"] == "FINETUNE_STEP"), None)


def test_only_the_steps_with_destinations_have_their_credentials() -> None:
    found = {
        (stage.value, name): (step_of(container), secrets_of(container))
        for stage in Stage
        for name, container in containers(stage).items()
    }
    assert found == {
        ("Prepare", "destination-probe"): ("Probe", {"write", "proxy"}),
        ("Prepare", "trainer"): (None, {"read", "proxy"}),
        ("Train", "trainer"): (None, set()),
        ("Merge", "merge"): (None, set()),
        ("Merge", "trainer"): ("Publish", {"write", "proxy"}),
        ("Report", "trainer"): ("Report", {"write", "proxy"}),
    }


def test_the_containers_with_credentials_come_before_prepare_and_after_merge() -> None:
    assert [each["name"] for each in pod(Stage.PREPARE)["initContainers"]] == ["destination-probe"]
    assert [each["name"] for each in pod(Stage.MERGE)["initContainers"]] == ["merge"]
    assert "initContainers" not in pod(Stage.TRAIN)
    for stage in WORK_STAGES:
        assert all(each["args"] == [stage.slug] for each in containers(stage).values())


def test_the_containers_with_credentials_see_neither_sources_nor_cache() -> None:
    mounts = {
        (stage.value, name): {mount["mountPath"] for mount in container["volumeMounts"]}
        for stage in (Stage.PREPARE, Stage.MERGE, Stage.REPORT)
        for name, container in containers(stage).items()
    }
    own = {"/etc/finetune", "/tmp", "/workspace"}  # noqa: S108 -- a mount
    assert mounts[("Prepare", "destination-probe")] == {*own, "/destinations/claim"}
    assert mounts[("Merge", "trainer")] == {*own, "/destinations/claim"}
    assert mounts[("Report", "trainer")] == {*own, "/destinations/claim"}
    assert mounts[("Merge", "merge")] == {*own, "/model-cache"}
    assert mounts[("Prepare", "trainer")] == {*own, "/source/dataset", "/model-cache"}


def test_a_secret_of_a_destination_comes_whole_and_with_a_prefix() -> None:
    entries = containers(Stage.MERGE)["trainer"]["envFrom"]
    assert entries == [{"prefix": "FINETUNE_DESTINATION_BUCKET_", "secretRef": {"name": "write"}}]


def test_a_token_of_a_hub_comes_as_one_variable_to_the_same_two_containers() -> None:
    hub = {"repository": "team/bot", "tokenSecretRef": {"name": "hub", "key": "write"}}
    spec = make_spec(output={"destinations": [{"name": "my-hub", "huggingFace": hub}]})
    found = {
        (stage.value, name): [
            entry for entry in container["env"] if entry["name"] == "FINETUNE_DESTINATION_MY_HUB_TOKEN"
        ]
        for stage in WORK_STAGES
        for name, container in containers(stage, spec).items()
    }
    reference = {"secretKeyRef": {"name": "hub", "key": "write"}}
    variable = [{"name": "FINETUNE_DESTINATION_MY_HUB_TOKEN", "valueFrom": reference}]
    assert {place for place, entries in found.items() if entries == variable} == {
        ("Prepare", "destination-probe"),
        ("Merge", "trainer"),
    }
    assert sum(map(len, found.values())) == 2


@pytest.mark.parametrize("stage", WORK_STAGES)
def test_a_job_with_one_destination_has_one_container(stage: Stage) -> None:
    assert list(containers(stage, make_spec())) == ["trainer"]
    assert "initContainers" not in pod(stage, make_spec())


TRACKERS = choose_trackers(
    Tracking.model_validate(
        {"mlflow": {"uri": "http://mlflow.ml:5000", "secretRef": {"name": "mlflow-login"}}}
    ),
    Tracking(),
)


def tracked_containers(stage: Stage, spec: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the containers of a stage whose run has a tracker."""
    body = build_job(
        make_job(spec),
        FineTuneJobSpec.parse(spec),
        stage,
        0,
        {"version": "1.9"},
        TRAINER,
        host=HOST,
        trackers=TRACKERS,
    )
    kubernetes_validate.validate(body, "1.32", strict=True)
    found = body["spec"]["template"]["spec"]
    return {each["name"]: each for each in [*found.get("initContainers", ()), *found["containers"]]}


@pytest.mark.parametrize("spec", [make_spec(), SPEC], ids=["one destination", "several"])
def test_only_merges_last_container_and_the_one_after_a_failure_know_the_trackers(
    spec: dict[str, Any],
) -> None:
    having = {
        (stage.value, name): container["envFrom"][-1]
        for stage in Stage
        for name, container in tracked_containers(stage, spec).items()
        if "mlflow-login" in secrets_of(container)
    }
    source = {
        "prefix": "FINETUNE_MLFLOW_",
        # A pod would wait for ever for a Secret that is missing.
        "secretRef": {"name": "mlflow-login", "optional": True},
    }
    assert having == {("Merge", "trainer"): source, ("Report", "trainer"): source}


def test_without_copies_the_reports_pod_has_no_credentials_of_destinations() -> None:
    found = {
        reports: secrets_of(
            tracked_containers(Stage.REPORT, {**SPEC, "output": {**SPEC["output"], "reports": reports}})[
                "trainer"
            ]
        )
        for reports in ("Destinations", "Workspace")
    }
    assert found == {
        "Destinations": {"write", "mlflow-login", "proxy"},
        "Workspace": {"mlflow-login", "proxy"},
    }


def test_with_a_tracker_merge_runs_before_the_container_that_tells_it() -> None:
    found = tracked_containers(Stage.MERGE, make_spec())
    assert {name: step_of(container) for name, container in found.items()} == {
        "merge": None,
        "trainer": "Publish",
    }
    output = [mount for mount in found["trainer"]["volumeMounts"] if mount["mountPath"] == "/output"]
    assert [mount.get("readOnly") for mount in output] == [True], "it only reads the manifest"
    assert list(tracked_containers(Stage.PREPARE, make_spec())) == ["trainer"]
    assert list(tracked_containers(Stage.TRAIN, make_spec())) == ["trainer"]
