from __future__ import annotations

from typing import Any

import pytest
from finetune_operator.api.spec import FineTuneJobSpec
from finetune_operator.contract.identity import JobIdentity
from finetune_operator.contract.mounts import pod_paths
from finetune_operator.contract.report_task import MAXIMUM_ATTEMPTS, report_places, report_task

from tests.support.operator import make_spec

UID = "0a1b2c3d-0000-4000-8000-000000000000"
SUFFIX = "-report-0a1b2c3d"


def places(output: dict[str, Any]) -> list[dict[str, Any]]:
    spec = FineTuneJobSpec.parse(make_spec(output=output))
    return report_places(spec, pod_paths(JobIdentity("team", "demo", UID), spec), UID)


def test_the_place_in_a_claim_is_beside_the_artifacts() -> None:
    claim = {"claimName": "models", "path": "a/b"}
    assert places({"destination": {"persistentVolumeClaim": claim}}) == [
        {
            "name": "destination",
            "kind": "Directory",
            "path": f"/output/a/b{SUFFIX}",
            "uri": f"pvc://team/models/a/b{SUFFIX}",
        }
    ]


@pytest.mark.parametrize(
    ("given", "member", "place"),
    [
        ({"persistentVolumeClaim": {"claimName": "c"}}, "path", f"/destinations/x/demo{SUFFIX}"),
        ({"s3": {"uri": "s3://bucket/a/", "secretRef": {"name": "s"}}}, "uri", f"s3://bucket/a{SUFFIX}"),
        ({"gcs": {"uri": "gs://bucket/a", "secretRef": {"name": "s"}}}, "uri", f"gs://bucket/a{SUFFIX}"),
        ({"oci": {"reference": "host:5000/a/b:v1"}}, "reference", f"host:5000/a/b:v1{SUFFIX}"),
        (
            {"huggingFace": {"repository": "o/n", "tokenSecretRef": {"name": "s", "key": "k"}}},
            "revision",
            f"main{SUFFIX}",
        ),
    ],
)
def test_every_kind_of_destination_has_a_place_of_its_own(
    given: dict[str, Any], member: str, place: str
) -> None:
    (found,) = places({"destinations": [{"name": "x", "overwrite": True, **given}]})
    assert found[member] == place
    assert found["name"] == "x", "the credentials are those of the destination"
    assert "overwrite" not in found, "a report never replaces what others have there"


def test_a_long_tag_stays_a_tag() -> None:
    (found,) = places({"destinations": [{"name": "x", "oci": {"reference": "host/a:" + "t" * 128}}]})
    tag = found["reference"].rpartition(":")[2]
    assert len(tag) == 128
    assert tag.endswith(SUFFIX)


def test_the_task_fits_an_annotation_whatever_the_status_holds() -> None:
    spec = FineTuneJobSpec.parse(make_spec())
    attempt = {"stage": "Train", "outcome": "Failed", "message": "m" * 9000, "memory": {"rungs": [1] * 999}}
    status = {"attempts": [{**attempt, "attempt": number} for number in range(99)]}
    task = report_task(spec, pod_paths(JobIdentity("team", "demo", UID), spec), UID, status, succeeded=True)
    assert [entry["attempt"] for entry in task["attempts"]] == list(range(99 - MAXIMUM_ATTEMPTS, 99))
    assert len(str(task)) < 32_000
    assert "failure" not in task
    assert task["outcome"] == "Succeeded"
