"""Published artifacts as MERGE leaves them in the workspace, and servers that receive copies."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

from finetune_trainer.contract.destinations import NamedDestination
from finetune_trainer.destinations.local_artifact import LocalArtifact, read_artifact
from finetune_trainer.destinations.opening import open_place
from finetune_trainer.destinations.publisher import Publisher
from finetune_trainer.workspace.digests import file_digest
from obstore.store import S3Store
from pydantic import TypeAdapter

from tests.support.servers.loopback import ACCESS_KEY, SECRET_KEY

SPEC, OTHER = "sha256:" + "0" * 64, "sha256:" + "1" * 64
BUCKET = "models"
S3_ENVIRONMENT = {"TEAM_AWS_ACCESS_KEY_ID": ACCESS_KEY, "TEAM_AWS_SECRET_ACCESS_KEY": SECRET_KEY}


def make_folder(folder: Path, *, spec: str = SPEC, seed: int = 1, megabytes: float = 1.0) -> Path:
    """Write a publication with two artifacts and a report into `folder`; its bytes follow from the seed."""
    source = random.Random(seed)  # noqa: S311 -- bytes that repeat
    size = int(megabytes * (1 << 20))
    contents = {
        "merged/model-00001-of-00002.safetensors": source.randbytes(size),
        "merged/model-00002-of-00002.safetensors": source.randbytes(size // 2 + 7),
        "merged/config.json": b'{"model_type": "llama"}',
        "adapter/adapter_model.safetensors": source.randbytes(size // 8),
        "adapter/README.md": b"# card\n",
        "report/merge.json": b"{}",
    }
    files = {}
    for name, content in contents.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        files[name] = {"digest": file_digest(path), "bytes": len(content)}
    manifest: dict[str, Any] = {"version": "1.1", "specHash": spec, "files": files}
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    return folder


def make_artifact(folder: Path, *, spec: str = SPEC, seed: int = 1, megabytes: float = 1.0) -> LocalArtifact:
    """Write a publication into `folder` and read it as the source of copies."""
    return read_artifact(make_folder(folder, spec=spec, seed=seed, megabytes=megabytes), spec)


def digests(artifact: LocalArtifact) -> dict[str, str]:
    """Return the digest of each file of a publication by name."""
    return {file.name: file.digest for file in artifact.files}


def s3_client(endpoint: str) -> S3Store:
    """Return the test's own client for the bucket."""
    return S3Store(
        BUCKET,
        endpoint=endpoint,
        region="us-east-1",
        access_key_id=ACCESS_KEY,
        secret_access_key=SECRET_KEY,
        virtual_hosted_style_request=False,
        client_options={"allow_http": True, "timeout": timedelta(seconds=30)},
    )


def open_named(place: dict[str, Any], journals: Path, environment: dict[str, str]) -> Publisher:
    """Open the publisher of an entry of the run spec's `output.destinations`."""
    destination: Any = TypeAdapter(NamedDestination).validate_python(place)
    return open_place(destination, SPEC, journals, environment, retry_seconds=20, allow_private=True)


def publishing_process(
    place: dict[str, Any], folder: Path, journals: Path, environment: dict[str, str]
) -> subprocess.Popen[bytes]:
    """Start a process that publishes, which the caller may kill."""
    task = {"place": place, "folder": str(folder), "journals": str(journals), "calls": 0}
    return subprocess.Popen(
        [sys.executable, "-m", "tests.support.publish_until_killed", json.dumps(task)],
        env={**os.environ, **environment},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def publish_until_killed(
    place: dict[str, Any], folder: Path, journals: Path, environment: dict[str, str], calls: int
) -> int | None:
    """Publish in a process that SIGKILLs itself at its `calls`-th call of a function of `destinations`; 0 for never.

    Returns the number of calls of a process that finished, None for one that was killed.
    """
    task = {"place": place, "folder": str(folder), "journals": str(journals), "calls": calls}
    process = subprocess.run(
        [sys.executable, "-m", "tests.support.publish_until_killed", json.dumps(task)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    if process.returncode == -signal.SIGKILL:
        return None
    assert process.returncode == 0, process.stderr
    return int(process.stdout)
