from __future__ import annotations

from typing import Any

from finetune_operator.api.spec import FineTuneJobSpec
from finetune_operator.api.stages import Stage
from finetune_operator.manifests.jobs import REPORT_SECONDS, build_job
from finetune_operator.sizing.hosts import REPORT_HOST

from tests.support.operator import SETTINGS, make_job, make_spec


def build(**output: Any) -> dict[str, Any]:
    spec = make_spec(
        model={
            "source": {
                "huggingFace": {"repository": "o/m", "tokenSecretRef": {"name": "hub", "key": "token"}}
            }
        },
        output={"reports": "Destinations"} | output,
        modelCache={"claimName": "cache"},
    )
    return build_job(
        make_job(spec),
        FineTuneJobSpec.parse(spec),
        Stage.REPORT,
        0,
        {"version": "1.9"},
        SETTINGS.trainer,
        host=REPORT_HOST,
    )


STORE = {"destinations": [{"name": "bucket", "s3": {"uri": "s3://b/k", "secretRef": {"name": "s3-secret"}}}]}
CLAIM = {"destination": {"persistentVolumeClaim": {"claimName": "artifacts"}}}


def test_the_only_container_has_the_credentials_of_the_destinations_and_no_others() -> None:
    pod = build(**STORE)["spec"]["template"]["spec"]
    assert "initContainers" not in pod
    (container,) = pod["containers"]
    assert container["args"] == ["report"]
    assert {"name": "FINETUNE_STEP", "value": "Report"} in container["env"]
    assert [each["secretRef"]["name"] for each in container["envFrom"]] == ["s3-secret"]
    assert not [each for each in container["env"] if "valueFrom" in each], "no token of the model"
    assert "nvidia.com/gpu" not in container["resources"]["limits"]


def test_a_pod_that_only_tells_a_tracker_mounts_no_destination() -> None:
    """It must not wait for a claim that it does not need."""
    pod = build(**CLAIM, reports="Workspace")["spec"]["template"]["spec"]
    claims = [
        each["persistentVolumeClaim"]["claimName"]
        for each in pod["volumes"]
        if "persistentVolumeClaim" in each
    ]
    assert claims == ["demo-workspace"]


def test_the_pod_mounts_the_workspace_and_the_claims_of_the_destinations_only() -> None:
    pod = build(**CLAIM)["spec"]["template"]["spec"]
    claims = [
        each["persistentVolumeClaim"]["claimName"]
        for each in pod["volumes"]
        if "persistentVolumeClaim" in each
    ]
    assert claims == ["demo-workspace", "artifacts"]
    mounts = [each["mountPath"] for each in pod["containers"][0]["volumeMounts"]]
    assert [mount for mount in mounts if mount != "/tmp"] == ["/etc/finetune", "/workspace", "/output"]  # noqa: S108 -- the pod's


def test_the_job_ends_even_if_no_operator_runs() -> None:
    assert build(**CLAIM)["spec"]["activeDeadlineSeconds"] == REPORT_SECONDS
    assert build(**CLAIM)["spec"]["backoffLimit"] == 0
