"""Datasets and models from a real S3 server on loopback."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import obstore
import pytest
from finetune_trainer.contract.object_store import ObjectStoreSource
from finetune_trainer.contract.run_spec import Limits as RunLimits
from finetune_trainer.errors import Reason, StageError
from finetune_trainer.quantization.quantize import quantize_model
from finetune_trainer.sources.dataset import Fetched, fetch_dataset
from finetune_trainer.sources.model import DirectoryModel
from finetune_trainer.sources.object_store import ObjectStoreModel
from finetune_trainer.sources.partial_download import PartialFile, Version
from finetune_trainer.telemetry.reporter import NullReporter
from finetune_trainer.workspace.layout import WorkspaceLayout
from obstore.store import S3Store

from tests.support.servers.loopback import ACCESS_KEY, SECRET_KEY, s3_server, throttle

pytestmark = pytest.mark.object_stores
BUCKET = "training-data"
ROWS = os.urandom(3 << 20)
ENVIRONMENT = {"TEAM_AWS_ACCESS_KEY_ID": ACCESS_KEY, "TEAM_AWS_SECRET_ACCESS_KEY": SECRET_KEY}


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[str]:
    """Run a server with a dataset and a model, and yield its endpoint."""
    folder = tmp_path_factory.mktemp("s3")
    (folder / BUCKET).mkdir()
    with s3_server(folder) as endpoint:
        put(endpoint, "sets/rows äöü.jsonl", ROWS)
        put(endpoint, "sets/rows.jsonl", ROWS)
        for path in tiny_model.iterdir():
            put(endpoint, f"models/tiny/{path.name}", path.read_bytes())
        put(endpoint, "models/tiny/original/not-this.json", b"{}")
        put(endpoint, "models/tiny-other/config.json", b"{}")
        yield endpoint


def put(endpoint: str, key: str, content: bytes) -> None:
    store = S3Store(
        BUCKET,
        endpoint=endpoint,
        region="us-east-1",
        access_key_id=ACCESS_KEY,
        secret_access_key=SECRET_KEY,
        client_options={"allow_http": True, "timeout": timedelta(seconds=30)},
    )
    obstore.put(store, key, content)


def source(
    endpoint: str | None, uri: str = f"s3://{BUCKET}/sets/rows.jsonl", prefix: str | None = "TEAM_"
) -> Any:
    return ObjectStoreSource(kind="ObjectStore", uri=uri, endpoint=endpoint, credentials_prefix=prefix)


def fetch(
    wanted: ObjectStoreSource,
    folder: Path,
    environment: dict[str, str] | None = None,
    *,
    size: int = 10**8,
    allow: bool = True,
    retry_seconds: int = 60,
) -> Fetched:
    limits = RunLimits(
        dataset_bytes=size, download_seconds=60, allow_private_addresses=allow, retry_seconds=retry_seconds
    )
    return fetch_dataset(
        wanted,
        "dataset",
        limits,
        folder,
        lambda _done, _total: None,
        ENVIRONMENT if environment is None else environment,
    )


def rejection(
    wanted: ObjectStoreSource, folder: Path, environment: dict[str, str] | None = None, **options: Any
) -> StageError:
    with pytest.raises(StageError) as caught:
        fetch(wanted, folder, environment, **options)
    assert SECRET_KEY not in caught.value.message
    return caught.value


@pytest.mark.parametrize("key", ["sets/rows.jsonl", "sets/rows äöü.jsonl"])
def test_an_object_arrives_with_its_identity(endpoint: str, tmp_path: Path, key: str) -> None:
    fetched = fetch(source(endpoint, f"s3://{BUCKET}/{key}"), tmp_path)
    assert fetched.paths[0].read_bytes() == ROWS
    assert fetched.identity["uri"] == f"s3://{BUCKET}/{key}"
    assert fetched.identity["bytes"] == len(ROWS)
    assert fetched.identity["etag"]


def test_the_pods_own_identity_is_used_without_a_prefix(endpoint: str, tmp_path: Path) -> None:
    own = {name.removeprefix("TEAM_"): value for name, value in ENVIRONMENT.items()}
    assert fetch(source(endpoint, prefix=None), tmp_path, own).paths[0].read_bytes() == ROWS


def test_variables_of_the_process_are_never_mixed_into_a_prefix(
    endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The variables are half a key, a token, an endpoint, and a switch that turns signing off."""
    ambient = {
        "AWS_ACCESS_KEY_ID": ACCESS_KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
        "AWS_SESSION_TOKEN": "someone else's",
        "AWS_ENDPOINT_URL_S3": "http://127.0.0.1:9",
        "AWS_SKIP_SIGNATURE": "true",
    }
    for name, value in ambient.items():
        monkeypatch.setenv(name, value)
    assert fetch(source(endpoint), tmp_path / "a").paths[0].read_bytes() == ROWS
    half = rejection(source(endpoint), tmp_path / "b", {"TEAM_AWS_ACCESS_KEY_ID": ACCESS_KEY})
    assert half.reason is Reason.DATASET_ACCESS_DENIED
    assert "AWS_SECRET_ACCESS_KEY" in half.message
    assert {name: os.environ[name] for name in ambient} == ambient


@pytest.mark.parametrize(
    ("uri", "reason"),
    [
        (f"s3://{BUCKET}/sets/none.jsonl", Reason.DATASET_NOT_FOUND),
        (f"s3://{BUCKET}/sets", Reason.DATASET_NOT_FOUND),
        ("s3://no-such-bucket/rows.jsonl", Reason.DATASET_NOT_FOUND),
        ("s3://Invalid_Bucket/rows.jsonl", Reason.DATASET_NOT_FOUND),
        (f"s3://{BUCKET}", Reason.DATASET_NOT_FOUND),
        (f"s3://{BUCKET}/", Reason.DATASET_NOT_FOUND),
        (f"s3://{BUCKET}/a//b", Reason.DATASET_NOT_FOUND),
        (f"s3://{BUCKET}/../b", Reason.DATASET_NOT_FOUND),
        ("https://example.com/x", Reason.DATASET_NOT_FOUND),
        ("az://account/rows.jsonl", Reason.DATASET_NOT_FOUND),
    ],
)
def test_a_missing_source_is_not_found(endpoint: str, tmp_path: Path, uri: str, reason: Reason) -> None:
    assert rejection(source(endpoint, uri), tmp_path).reason is reason


@pytest.mark.parametrize(
    "changes",
    [
        {"TEAM_AWS_SECRET_ACCESS_KEY": "wrong"},
        {"TEAM_AWS_ACCESS_KEY_ID": "AKIANOBODY"},
        {"TEAM_AWS_SESSION_TOKEN": "old"},
    ],
)
def test_wrong_keys_are_denied(endpoint: str, tmp_path: Path, changes: dict[str, str]) -> None:
    error = rejection(source(endpoint), tmp_path, ENVIRONMENT | changes)
    assert error.reason is Reason.DATASET_ACCESS_DENIED


def test_too_many_bytes_are_rejected_before_the_download(endpoint: str, tmp_path: Path) -> None:
    assert rejection(source(endpoint), tmp_path, size=1000).reason is Reason.DATASET_TOO_LARGE
    assert not (tmp_path / "dataset").exists()


@pytest.mark.parametrize(
    ("place", "reason"),
    [
        ("http://127.0.0.1:9", Reason.DATASET_UNAVAILABLE),
        ("https://127.0.0.1:9", Reason.DATASET_UNAVAILABLE),
        ("http://unresolvable.invalid", Reason.DATASET_UNAVAILABLE),
        ("not a url", Reason.DATASET_ADDRESS_FORBIDDEN),
        ("https://user:password@127.0.0.1", Reason.DATASET_ADDRESS_FORBIDDEN),
    ],
)
def test_endpoints_that_do_not_respond_or_are_invalid(tmp_path: Path, place: str, reason: Reason) -> None:
    assert rejection(source(place), tmp_path, retry_seconds=0).reason is reason


@pytest.mark.parametrize(
    "place", ["http://127.0.0.1:7070", "https://localhost", "https://169.254.169.254", "https://10.0.0.1"]
)
def test_private_endpoints_and_http_are_forbidden_unless_allowed(tmp_path: Path, place: str) -> None:
    assert rejection(source(place), tmp_path, allow=False).reason is Reason.DATASET_ADDRESS_FORBIDDEN


PROGRAM = """
import sys
from pathlib import Path
from finetune_trainer.contract.run_spec import Limits, ObjectStoreSource
from finetune_trainer.sources.dataset import fetch_dataset
limits = Limits(dataset_bytes=10**8, download_seconds=60, allow_private_addresses=True)
source = ObjectStoreSource.model_validate_json(sys.argv[1])
fetch_dataset(source, "dataset", limits, Path(sys.argv[2]), lambda done, total: None)
"""


def test_a_killed_download_is_resumed_by_range(endpoint: str, tmp_path: Path) -> None:
    part = tmp_path / ".dataset.part"
    with throttle(endpoint, 4 << 20) as (slow, passed):
        wanted = source(slow)
        process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, wanted.model_dump_json(), str(tmp_path)],
            env=os.environ | ENVIRONMENT,
        )
        deadline = time.monotonic() + 60
        while not part.is_file() or part.stat().st_size == 0:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
        left = part.stat().st_size
        time.sleep(0.2)
        before = passed[0]
        assert fetch(wanted, tmp_path).paths[0].read_bytes() == ROWS
        assert passed[0] - before < len(ROWS) - left + (1 << 16)
    assert fetch(wanted, tmp_path).identity["bytes"] == len(ROWS), "what is whole needs no server"


def test_an_object_that_changed_is_fetched_from_the_beginning(endpoint: str, tmp_path: Path) -> None:
    put(endpoint, "sets/changing.jsonl", b"old" * 1000)
    wanted = source(endpoint, f"s3://{BUCKET}/sets/changing.jsonl")
    fetch(wanted, tmp_path)
    # A process that was killed during the download leaves this state.
    (tmp_path / "dataset").unlink()
    name = f"{endpoint} {wanted.uri} sets/changing.jsonl"
    partial = PartialFile(tmp_path / "dataset", name)
    partial.begin(Version('"0123456789abcdef0123456789abcdef"', 3000))
    partial.path.write_bytes(b"old" * 10)
    put(endpoint, "sets/changing.jsonl", b"new" * 1000)
    assert fetch(wanted, tmp_path).paths[0].read_bytes() == b"new" * 1000


def model(
    endpoint: str,
    folder: Path,
    uri: str = f"s3://{BUCKET}/models/tiny",
    *,
    environment: dict[str, str] | None = None,
    allow: bool = True,
) -> ObjectStoreModel:
    return ObjectStoreModel(
        source(endpoint, uri),
        folder,
        allow_private_addresses=allow,
        environment=ENVIRONMENT if environment is None else environment,
        sleep=lambda _seconds: None,
    )


def test_a_prefix_quantizes_to_the_bytes_of_the_same_folder(
    endpoint: str, tmp_path: Path, tiny_model: Path
) -> None:
    found = model(endpoint, tmp_path / "download", f"s3://{BUCKET}/models/tiny/")
    remote = quantize_model(found, WorkspaceLayout(tmp_path / "remote"), NullReporter())
    local = quantize_model(DirectoryModel(tiny_model), WorkspaceLayout(tmp_path / "local"), NullReporter())
    assert remote.digest == local.digest
    assert list((tmp_path / "download").rglob("*.safetensors")) == []
    assert set(found.identity()["files"]) == {path.name for path in tiny_model.iterdir()}


def test_only_a_download_is_deleted_when_it_is_released(endpoint: str, tmp_path: Path) -> None:
    found = model(endpoint, tmp_path)
    path = found.fetch("model.safetensors", lambda _done, _total: None)
    assert path.is_file()
    found.release("model.safetensors")
    assert not path.exists()
    assert found.fetch("model.safetensors", lambda _done, _total: None).is_file()


@pytest.mark.parametrize(
    ("uri", "environment", "reason"),
    [
        (f"s3://{BUCKET}/models/none", {}, Reason.MODEL_NOT_FOUND),
        ("s3://no-such-bucket/models/tiny", {}, Reason.MODEL_NOT_FOUND),
        (f"s3://{BUCKET}/models/tiny", {"TEAM_AWS_SECRET_ACCESS_KEY": "wrong"}, Reason.MODEL_ACCESS_DENIED),
        (f"s3://{BUCKET}/models/tiny-other", {}, Reason.INVALID_MODEL),
    ],
)
def test_a_model_that_cannot_be_fetched_has_a_reason(
    endpoint: str, tmp_path: Path, uri: str, environment: dict[str, str], reason: Reason
) -> None:
    with pytest.raises(StageError) as caught:
        model(endpoint, tmp_path, uri, environment=ENVIRONMENT | environment)
    assert caught.value.reason is reason


def test_a_models_private_endpoint_is_forbidden_unless_allowed(endpoint: str, tmp_path: Path) -> None:
    with pytest.raises(StageError) as caught:
        model(endpoint.replace("http:", "https:"), tmp_path, allow=False)
    assert caught.value.reason is Reason.MODEL_ADDRESS_FORBIDDEN


def test_a_model_that_changes_during_the_download_is_rejected(endpoint: str, tmp_path: Path) -> None:
    put(endpoint, "models/moving/config.json", b"{}")
    put(endpoint, "models/moving/model.safetensors", b"one")
    found = model(endpoint, tmp_path, f"s3://{BUCKET}/models/moving")
    put(endpoint, "models/moving/model.safetensors", b"two")
    with pytest.raises(StageError) as caught:
        found.fetch("model.safetensors", lambda _done, _total: None)
    assert caught.value.reason is Reason.MODEL_UNAVAILABLE
