"""A job publishes to a claim and to a real S3 server, signed, with credentials that only two containers have."""

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
from tests.support.e2e.stores import ObjectStore, s3_server

pytestmark = pytest.mark.cluster


@pytest.fixture
def store(room: Kubectl, operator: ProvidedCluster, private_addresses: None) -> Iterator[ObjectStore]:
    """A real S3 server with the bucket `models`, whose credentials are in the Secret `models`."""
    del private_addresses
    with s3_server(room, operator.trainer_image, ["models"]) as running:
        room.apply(jobs.secret("models", running.credentials))
        yield running


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


def test_a_signed_model_is_in_the_store_and_in_the_claim(
    room: Kubectl, store: ObjectStore, tmp_path: Path
) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
    public = tmp_path / "public.pem"
    public.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
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
    found = verify(folder, read_public_key(public))
    assert found.findings == []
    assert found.signed
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["specHash"] == status["specHash"]
    assert not any(value in json.dumps(job) for value in [*store.credentials.values(), private])


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
