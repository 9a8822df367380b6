"""A job with rows from S3, by a Secret's keys, and from a signed URL succeeds and reveals no secret anywhere."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest
from devcluster import product
from devcluster.kubectl import Kubectl
from devcluster.provider import ProvidedCluster

from tests.support.e2e import jobs
from tests.support.e2e.command_line import finetune
from tests.support.e2e.namespaces import fresh_namespace
from tests.support.e2e.stores import ObjectStore, s3_server
from tests.support.traces import Traces

pytestmark = pytest.mark.cluster

TRAINING = jobs.jsonl(jobs.conversations(40)[:32])
HELD_OUT = jobs.jsonl(jobs.conversations(40)[32:])
OBJECTS = "finetunejobs,jobs,pods,events,persistentvolumeclaims,configmaps,services"


@pytest.fixture(scope="module")
def place(
    operator: ProvidedCluster, kubectl: Kubectl, private_addresses: None, tiny_assets: Path
) -> Iterator[Kubectl]:
    """Kubectl in a namespace that only these tests use: everything in it is a trace of their jobs."""
    del private_addresses
    with fresh_namespace(kubectl) as name:
        scoped = kubectl.within(name)
        scoped.apply(product.claim(jobs.CLAIM, "1Gi"))
        with product.volume_pod(scoped, jobs.CLAIM, operator.trainer_image) as pod:
            product.fill_volume(scoped, pod, tiny_assets)
        yield scoped


@pytest.fixture(scope="module")
def store(place: Kubectl, operator: ProvidedCluster) -> Iterator[ObjectStore]:
    """An S3 server with both datasets; the server itself is no trace of a job."""
    with s3_server(place, operator.trainer_image, ["rows"]) as served:
        served.put("rows", "training data/rows.jsonl.gz", gzip.compress(TRAINING.encode()))
        served.put("rows", "held-out.jsonl", HELD_OUT.encode())
        yield served


def fetch_job(store: ObjectStore, name: str, *, keys: str = "store", **spec: Any) -> dict[str, Any]:
    """A job with training rows from an object read with a Secret's keys, and validation rows from a signed URL."""
    job = jobs.fine_tune_job(name, **spec)
    job["spec"]["dataset"] = {
        "source": {
            "s3": {
                "uri": "s3://rows/training data/rows.jsonl.gz",
                "endpoint": store.endpoint,
                "region": "us-east-1",
                "secretRef": {"name": keys},
            }
        },
        "validation": {"source": {"url": {"secretKeyRef": {"name": "link", "key": "url"}}}},
    }
    return job


def volume_traces(traces: Traces, kubectl: Kubectl, image: str, claim: str, folder: Path) -> None:
    """Add every file of a claim to the traces."""
    with product.volume_pod(kubectl, claim, image) as pod:
        product.read_volume(kubectl, pod, ".", folder)
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert files
    for path in files:
        traces.add(f"{claim}:{path.relative_to(folder)}", path.read_bytes())


def without_server(documents: dict[str, Any]) -> str:
    """Return objects as text, except the S3 server's pod and events, which contain its keys."""
    kept = [
        item
        for item in documents["items"]
        if item["metadata"]["name"] != "s3" and (item.get("involvedObject") or {}).get("name") != "s3"
    ]
    return json.dumps(kept, ensure_ascii=False)


def test_a_job_with_keys_and_a_signed_url_shows_no_secret_anywhere(
    place: Kubectl, operator: ProvidedCluster, store: ObjectStore, tmp_path: Path
) -> None:
    url = store.signed_url("rows", "held-out.jsonl")
    place.apply(jobs.secret("store", store.credentials), jobs.secret("link", {"url": url}))
    kept = {"keepChildrenSeconds": {"success": 3600, "failure": 3600}, "keepWorkspace": "Always"}
    traces = Traces()

    def watch(job: dict[str, Any]) -> None:
        traces.extend("status while it ran", json.dumps(job))
        for pod in place.json("get", "pods", "--selector=finetune.dev/job=fetch")["items"]:
            name = pod["metadata"]["name"]
            path = f"/api/v1/namespaces/{place.namespace}/pods/{name}:9500/proxy/progress"
            told = place.run("get", f"--raw={path}")
            if told.returncode == 0:
                traces.extend(f"progress of {name}", told.stdout)

    place.apply(fetch_job(store, "fetch", lifecycle=kept))
    job = product.follow(place, "fetch", seconds=400, seen=watch)

    assert product.condition(job, "Succeeded")["status"] == "True", job["status"]
    dataset = job["status"]["dataset"]
    assert (dataset["rows"], dataset["trainingExamples"], dataset["validationExamples"]) == (32, 32, 8)
    assert dataset["source"]["uri"] == "s3://rows/training data/rows.jsonl.gz"
    assert re.fullmatch(r"[\"0-9a-f-]+", dataset["source"]["etag"])
    assert any(where.startswith("progress of ") for where in traces.texts)

    traces.add("objects", without_server(place.json("get", OBJECTS)))
    traces.add("description", place("describe", "finetunejobs,jobs"))
    pods = place.json("get", "pods", "--selector=finetune.dev/job=fetch")["items"]
    assert {pod["metadata"]["labels"]["finetune.dev/stage"] for pod in pods} == {"prepare", "train", "merge"}
    for pod in pods:
        log = place("logs", pod["metadata"]["name"])
        assert "outcome=Succeeded" in log
        traces.add(f"log of {pod['metadata']['name']}", log)
    system = place.within(product.SYSTEM_NAMESPACE)
    traces.add(
        "log of the operator", system("logs", "--selector=app.kubernetes.io/component=operator", "--tail=-1")
    )
    for pod in system.json("get", "pods", "--selector=app.kubernetes.io/component=operator")["items"]:
        path = (
            f"/api/v1/namespaces/{product.SYSTEM_NAMESPACE}/pods/{pod['metadata']['name']}:8080/proxy/metrics"
        )
        traces.extend("metrics of the operator", system("get", "--raw", path))
    assert b'name="fetch"' in traces.texts["metrics of the operator"]
    for command in (("logs", "--stage", "prepare"), ("report", "-o", "json"), ("report",), ("cost",)):
        traces.add(f"finetune {' '.join(command)}", finetune(place, command[0], "fetch", *command[1:]))
    traces.add("finetune list", finetune(place, "list", "-o", "json"))
    volume_traces(traces, place, operator.trainer_image, "fetch-workspace", tmp_path / "workspace")
    volume_traces(traces, place, operator.trainer_image, jobs.CLAIM, tmp_path / "destination")
    assert any(where.endswith(".html") for where in traces.texts), "the report must be published"
    assert traces.places_of("s3://rows/training data/rows.jsonl.gz"), "non-secret text must be found"

    query = urlsplit(url).query
    signature = dict(parse_qsl(query))["X-Amz-Signature"]
    for secret in (*store.credentials.values(), url, query, signature):
        assert traces.places_of(secret) == [], secret


WRONG_KEYS = {
    "wrong-key": {"AWS_SECRET_ACCESS_KEY": "wrong/+wrong"},
    "unknown-key": {"AWS_ACCESS_KEY_ID": "AKIAWRONGWRONGWRONG0"},
}


def test_wrong_keys_are_named_without_being_shown(place: Kubectl, store: ObjectStore) -> None:
    place.apply(jobs.secret("link", {"url": store.signed_url("rows", "held-out.jsonl")}))
    for name, change in WRONG_KEYS.items():
        place.apply(jobs.secret(name, {**store.credentials, **change}), fetch_job(store, name, keys=name))
        job = product.follow(place, name, seconds=90)
        assert product.condition(job, "Succeeded")["reason"] == "DatasetAccessDenied"
    shown = without_server(place.json("get", OBJECTS))
    values = {value for change in WRONG_KEYS.values() for value in {**store.credentials, **change}.values()}
    assert not [value for value in values if value in shown]
