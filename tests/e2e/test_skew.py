"""A CRD that is newer than the operator ends no job."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import yaml
from devcluster import product
from devcluster.kubectl import Kubectl

from tests.support.crd_schema import crd
from tests.support.e2e import jobs

pytestmark = pytest.mark.cluster


def newer_crd() -> str:
    """The CRD of a later version, which has another field with a default."""
    document = crd()
    (version,) = document["spec"]["versions"]
    training = version["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]["training"]
    training["properties"]["novelty"] = {
        "type": "string",
        "description": "A field of a later version.",
        "enum": ["Auto", "Never"],
        "default": "Auto",
    }
    return yaml.safe_dump(document)


def apply(kubectl: Kubectl, document: str) -> None:
    kubectl("apply", "--server-side", "--force-conflicts", "--filename=-", stdin=document)


@pytest.fixture
def newer(room: Kubectl) -> Iterator[Kubectl]:
    """The shared namespace; the CRD of this version is installed again at the end."""
    yield room
    apply(room, yaml.safe_dump(crd()))


def test_a_running_job_survives_a_newer_crd_and_its_rollback(newer: Kubectl) -> None:
    def runs(job: dict[str, Any]) -> bool:
        return "startTime" in (job.get("status", {}).get("stage") or {})

    def ignores(status: str) -> Callable[[dict[str, Any]], bool]:
        def holds(job: dict[str, Any]) -> bool:
            return any(
                (entry["type"], entry["status"]) == ("FieldsIgnored", status)
                for entry in job["status"]["conditions"]
            )

        return holds

    def uid() -> str:
        return str(newer.json("get", "job", "skew-prepare-0")["metadata"]["uid"])

    newer.apply(
        jobs.fine_tune_job("skew", lifecycle={"keepChildrenSeconds": {"success": 600, "failure": 600}})
    )
    jobs.until(newer, "skew", "the first Job", seconds=120, holds=runs)
    first = uid()
    apply(newer, newer_crd())
    # A default appears in a stored object with its next change.
    newer("label", "finetunejob", "skew", "change=1")
    found = jobs.until(newer, "skew", "the ignored field", seconds=60, holds=ignores("True"))
    assert "spec.training.novelty" in product.condition(found, "FieldsIgnored")["message"]
    assert product.condition(found, "Succeeded")["reason"] != "InvalidSpec"
    apply(newer, yaml.safe_dump(crd()))
    newer("label", "finetunejob", "skew", "change=2", "--overwrite")
    found = jobs.until(newer, "skew", "no ignored field", seconds=60, holds=ignores("False"))
    assert product.condition(found, "Succeeded")["reason"] != "InvalidSpec"
    assert uid() == first
