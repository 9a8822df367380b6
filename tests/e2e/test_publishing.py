"""Jobs publish to a claim, a real S3 server, a real registry and a hub, signed, with credentials of two containers alone."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from devcluster import product
from devcluster.kubectl import Kubectl
from devcluster.provider import ProvidedCluster
from finetune_cli.verify import read_public_key, verify

from tests.support.e2e import jobs
from tests.support.e2e.registry import Registry, registry_server
from tests.support.e2e.stores import ObjectStore, s3_server
from tests.support.e2e.writable_hub import HubPod, hub_pod

pytestmark = pytest.mark.cluster


@pytest.fixture
def store(room: Kubectl, operator: ProvidedCluster, private_addresses: None) -> Iterator[ObjectStore]:
    """A real S3 server with the bucket `models`, whose credentials are in the Secret `models`."""
    del private_addresses
    with s3_server(room, operator.trainer_image, ["models"]) as running:
        room.apply(jobs.secret("models", running.credentials))
        yield running


@pytest.fixture
def registry(room: Kubectl, operator: ProvidedCluster, private_addresses: None) -> Iterator[Registry]:
    """A real registry, whose authority is in the ConfigMap `authority`."""
    del private_addresses
    with registry_server(room, operator.trainer_image) as running:
        room.apply(jobs.config_map("authority", running.authority))
        yield running


@pytest.fixture
def hub(room: Kubectl, operator: ProvidedCluster, private_addresses: None) -> Iterator[HubPod]:
    """A hub without repositories, which the operator knows, and whose token is in the Secret `hub`."""
    del private_addresses
    with hub_pod(room, operator.trainer_image) as running:
        trainer = {
            "huggingFaceEndpoint": running.endpoint,
            "limits": {"allowPrivateAddresses": True},
        }
        product.install_chart(operator, {"trainer": trainer})
        room.apply(jobs.secret("hub", {"token": running.token}))
        yield running
        product.install_chart(operator, {"trainer": {"limits": {"allowPrivateAddresses": True}}})


def publishing_job(name: str, store: ObjectStore, secret: str, **output: Any) -> dict[str, Any]:
    """Return a job that publishes to the folder and the prefix of its name."""
    bucket = {
        "uri": f"s3://models/{name}",
        "endpoint": store.endpoint,
        "secretRef": {"name": secret},
    }
    claim = {"claimName": jobs.CLAIM, "path": f"outputs/{name}"}
    destinations = [{"name": "bucket", "s3": bucket}, {"name": "claim", "persistentVolumeClaim": claim}]
    return jobs.fine_tune_job(name, output={"destinations": destinations, **output})


def make_key(folder: Path) -> tuple[str, Path]:
    """Return a private key as PEM, and the path of its public key."""
    key = ec.generate_private_key(ec.SECP256R1())
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
    public = folder / "public.pem"
    public.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    return private, public


def require_signed(folder: Path, public: Path, status: dict[str, Any]) -> None:
    """Fail unless the folder has exactly the job's files, signed with the key."""
    found = verify(folder, read_public_key(public))
    assert found.findings == []
    assert found.signed
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["specHash"] == status["specHash"]


def test_a_signed_model_is_in_the_store_and_in_the_claim(
    room: Kubectl, store: ObjectStore, tmp_path: Path
) -> None:
    private, public = make_key(tmp_path)
    room.apply(
        jobs.secret("signer", {"key.pem": private}),
        publishing_job(
            "shared", store, "models", signing={"keySecretRef": {"name": "signer", "key": "key.pem"}}
        ),
    )
    job = product.follow(room, "shared", seconds=300)
    status = job["status"]
    assert product.condition(job, "Succeeded")["status"] == "True", status
    published = {each["name"]: each for each in status["publications"]}
    assert published.keys() == {"bucket", "claim"}
    assert published["bucket"]["uri"] == "s3://models/shared"
    folder = tmp_path / "bucket"
    store.download("models", "shared", folder)
    require_signed(folder, public, status)
    assert not any(value in json.dumps(job) for value in [*store.credentials.values(), private])


@pytest.mark.devcluster
def test_one_job_publishes_the_same_signed_files_to_every_kind_of_place(
    room: Kubectl, store: ObjectStore, registry: Registry, hub: HubPod, tmp_path: Path
) -> None:
    private, public = make_key(tmp_path)
    job = publishing_job(
        "everywhere", store, "models", signing={"keySecretRef": {"name": "signer", "key": "key.pem"}}
    )
    job["spec"]["network"] = {"caBundle": {"configMapKeyRef": {"name": "authority", "key": "data.jsonl"}}}
    job["spec"]["output"]["destinations"] += [
        {"name": "registry", "oci": {"reference": f"{registry.host}/team/everywhere:1"}},
        {
            "name": "hub",
            "huggingFace": {
                "repository": "team/everywhere",
                "tokenSecretRef": {"name": "hub", "key": "token"},
            },
        },
    ]
    room.apply(jobs.secret("signer", {"key.pem": private}), job)
    found = product.follow(room, "everywhere", seconds=300)
    status = found["status"]
    assert product.condition(found, "Succeeded")["status"] == "True", status
    published = {each["name"]: each for each in status["publications"]}
    assert published.keys() == {"bucket", "claim", "registry", "hub"}
    store.download("models", "everywhere", tmp_path / "bucket")
    hub.download(published["hub"]["digest"], tmp_path / "hub")
    (tmp_path / "hub" / ".gitattributes").unlink()  # the hub's own file
    for name, image in (("1", False), ("1-image", True)):
        for path, content in registry.files("team/everywhere", name, image=image).items():
            target = tmp_path / name / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
    for place in ("bucket", "hub", "1", "1-image"):
        require_signed(tmp_path / place, public, status)
    assert hub.token not in json.dumps(found)


@pytest.mark.full
def test_a_bucket_that_vanishes_during_the_training_costs_no_second_one(
    room: Kubectl, store: ObjectStore
) -> None:
    room.apply(publishing_job("patient", store, "models"))
    jobs.until(
        room, "patient", "TRAIN", seconds=120,
        holds=lambda job: job.get("status", {}).get("stage", {}).get("name") == "Train",
    )  # fmt: skip
    store.rename_bucket("models", "gone")
    waiting = jobs.until(
        room, "patient", "WaitingForDestination", seconds=180, holds=jobs.waiting("WaitingForDestination")
    )
    assert "1 of 2 destinations have the artifacts" in product.condition(waiting, "Reconciling")["message"]
    assert product.condition(waiting, "Succeeded")["status"] == "Unknown"
    store.rename_bucket("gone", "models")
    job = product.follow(room, "patient", seconds=300)
    assert product.condition(job, "Succeeded")["status"] == "True", job["status"]
    attempts = [(attempt["stage"], attempt["outcome"]) for attempt in job["status"]["attempts"]]
    assert attempts[:2] == [("Prepare", "Succeeded"), ("Train", "Succeeded")]
    merges = [outcome for _, outcome in attempts[2:]]
    assert merges == ["Failed"] * (len(merges) - 1) + ["Succeeded"]
    assert len(merges) >= 2


def test_a_wrong_credential_ends_the_job_before_anything_is_prepared(
    room: Kubectl, store: ObjectStore
) -> None:
    wrong = {**store.credentials, "AWS_SECRET_ACCESS_KEY": "wrong/+key"}
    room.apply(jobs.secret("wrong", wrong), publishing_job("locked-out", store, "wrong"))
    job = product.follow(room, "locked-out", seconds=180)
    failed = product.condition(job, "Succeeded")
    assert (failed["status"], failed["reason"]) == ("False", "DestinationAccessDenied"), job["status"]
    assert "bucket" in failed["message"]
    assert [attempt["stage"] for attempt in job["status"]["attempts"]] == ["Prepare"]
    assert product.condition(job, "DatasetReady")["status"] != "True"
    assert not any(value in json.dumps(job) for value in wrong.values())
