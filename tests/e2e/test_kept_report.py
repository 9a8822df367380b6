"""A job that has failed in PREPARE keeps its log and its report, and publishes the report, after its pods are gone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from devcluster import product
from devcluster.kubectl import Kubectl
from devcluster.provider import ProvidedCluster

from tests.support.e2e import jobs
from tests.support.e2e.command_line import finetune

pytestmark = pytest.mark.cluster

HOSTILE = "not json: \x1b[31mred <script>alert(1)</script>"


def reported(job: dict[str, Any]) -> bool:
    conditions = {entry["type"]: entry["status"] for entry in job.get("status", {}).get("conditions", ())}
    return conditions.get("Succeeded") == "False" and conditions.get("ReportPublished") == "True"


def test_a_failed_job_can_be_read_and_its_report_is_published_when_its_pods_are_gone(
    room: Kubectl, operator: ProvidedCluster, tmp_path: Path
) -> None:
    room.apply(jobs.config_map("kept", HOSTILE + "\n"))
    place = {"claimName": jobs.CLAIM, "path": "outputs/kept"}
    room.apply(
        jobs.fine_tune_job(
            "kept",
            dataset={"configMap": {"name": "kept", "key": "data.jsonl"}},
            output={
                "destinations": [{"name": "claim", "persistentVolumeClaim": place}],
                "reports": "Destinations",
            },
        )
    )
    job = jobs.until(room, "kept", "a failed job with its report published", seconds=180, holds=reported)
    reason = product.condition(job, "Succeeded")["reason"]
    room("wait", "--for=delete", "pods", "--selector=finetune.dev/job=kept", "--timeout=60s")

    log = finetune(room, "logs", "kept")
    assert reason in log
    assert "\x1b" not in log
    document = json.loads(finetune(room, "report", "kept", "-o", "json"))
    assert reason in json.dumps(document)
    page = tmp_path / "page.html"
    finetune(room, "report", "kept", "--save", str(page))
    assert "<script>alert" not in page.read_text()
    assert reason in page.read_text()
    pods = [pod["metadata"] for pod in room.json("get", "pods")["items"]]
    left = [each["name"] for each in pods if jobs.SERVER_LABEL not in each.get("labels", {})]
    assert left == [], "the pods that read are gone"

    with product.volume_pod(room, jobs.CLAIM, operator.trainer_image) as pod:
        listed = room("exec", pod, "--", "sh", "-c", "ls -d /volume/outputs/kept-report-*/*/*")
    names = {line.rpartition("/")[2] for line in str(listed).split()}
    assert {"index.html", "job.json"} <= names, listed

    room("delete", "persistentvolumeclaim", "kept-workspace", "--wait=true", "--timeout=120s")
    found = json.loads(finetune(room, "report", "kept", "-o", "json"))
    assert reason in json.dumps(found), "the copy beside the destination must be read"
