"""Publishing to a real OCI registry on loopback."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from finetune_trainer.contract.destinations import RegistryDestination
from finetune_trainer.destinations.registry import RegistryPublisher
from finetune_trainer.errors import Reason, StageError
from finetune_trainer.sources.network import Network
from finetune_trainer.sources.retry import RetryPolicy

from tests.support.publishing import OTHER, SPEC, digests, make_artifact
from tests.support.servers.registry import pull, pull_blob, registry_server

pytestmark = pytest.mark.object_stores


@pytest.fixture
def host(tmp_path: Path) -> Iterator[str]:
    with registry_server(tmp_path / "registry") as host:
        yield host


def publisher(host: str, *, spec: str = SPEC, tag: str = "1", overwrite: bool = False) -> RegistryPublisher:
    destination = RegistryDestination(
        kind="Oci", name="registry", reference=f"{host}/team/bot:{tag}", overwrite=overwrite
    )
    return RegistryPublisher(destination, spec, {}, Network(retry=RetryPolicy(0)), allow_private=True)


def files_of(host: str, manifest: dict[str, Any]) -> dict[str, bytes]:
    return {
        layer["annotations"]["org.cncf.model.filepath"]: pull_blob(host, "team/bot", layer["digest"])
        for layer in manifest["layers"]
    }


def ignore(_done: int) -> None:
    pass


def test_a_tag_names_a_model_pack_with_every_file(host: str, tmp_path: Path) -> None:
    artifact = make_artifact(tmp_path / "artifact", megabytes=4)
    sent: list[int] = []
    digest = publisher(host).publish(artifact, sent.append)
    assert sent == sorted(sent)
    manifest = pull(host, "team/bot", "1")
    assert manifest is not None
    assert manifest["artifactType"] == "application/vnd.cncf.model.manifest.v1+json"
    assert manifest["config"]["mediaType"] == "application/vnd.cncf.model.config.v1+json"
    found = files_of(host, manifest)
    assert found.pop("manifest.json") == artifact.manifest
    assert {name: f"sha256:{hashlib.sha256(body).hexdigest()}" for name, body in found.items()} == digests(
        artifact
    )
    kinds = {
        layer["annotations"]["org.cncf.model.filepath"]: layer["mediaType"] for layer in manifest["layers"]
    }
    prefix = "application/vnd.cncf.model."
    assert kinds["adapter/adapter_model.safetensors"] == f"{prefix}weight.v1.raw"
    assert kinds["merged/config.json"] == f"{prefix}weight.config.v1.raw"
    assert kinds["adapter/README.md"] == kinds["report/merge.json"] == f"{prefix}doc.v1.raw"
    config = json.loads(pull_blob(host, "team/bot", manifest["config"]["digest"]))
    assert config["modelfs"]["diffIds"] == [layer["digest"] for layer in manifest["layers"]]
    assert pull(host, "team/bot", str(digest)) == manifest
    assert publisher(host).published() == json.loads(artifact.manifest)


def test_the_same_bytes_have_the_same_digest_and_are_not_sent_again(host: str, tmp_path: Path) -> None:
    artifact = make_artifact(tmp_path / "artifact")
    first = publisher(host).publish(artifact, ignore)
    assert publisher(host).publish(artifact, ignore) == first
    assert publisher(host, tag="2").publish(artifact, ignore) == first


@pytest.mark.parametrize("overwrite", [False, True])
def test_another_tag_is_replaced_only_if_the_job_says_so(
    host: str, tmp_path: Path, *, overwrite: bool
) -> None:
    publisher(host, spec=OTHER).publish(make_artifact(tmp_path / "theirs", spec=OTHER, seed=2), ignore)
    before = pull(host, "team/bot", "1")
    ours = make_artifact(tmp_path / "ours")
    mine = publisher(host, overwrite=overwrite)
    if overwrite:
        mine.probe()
        mine.publish(ours, ignore)
        assert pull(host, "team/bot", "1") != before
        return
    actions: tuple[Callable[[], object], ...] = (mine.probe, partial(mine.publish, ours, ignore))
    for action in actions:
        with pytest.raises(StageError) as caught:
            action()
        assert caught.value.reason is Reason.DESTINATION_UNWRITABLE
    assert pull(host, "team/bot", "1") == before
    assert mine.published() is None


def test_a_probe_leaves_no_blob_behind(host: str, tmp_path: Path) -> None:
    publisher(host).probe()
    left = [path for path in (tmp_path / "registry" / "blobs").rglob("data") if path.is_file()]
    assert left == []
