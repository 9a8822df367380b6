"""containerd 2 unpacks and mounts the image that stands beside a ModelPack, from a real registry."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from finetune_trainer.destinations.local_artifact import LocalArtifact, read_artifact

from tests.support.containerd import mount_image
from tests.support.publishing import SPEC, digests, make_artifact, make_folder, open_named
from tests.support.servers.registry import registry_server

pytestmark = [pytest.mark.full, pytest.mark.loaders]


def published(host: str, artifact: LocalArtifact, tmp_path: Path) -> str:
    """Publish to the registry, and return the reference of the image."""
    place = {"kind": "Oci", "name": "registry", "reference": f"{host}/team/bot:1"}
    open_named(place, tmp_path / "journals", {}).publish(artifact, lambda _: None)
    return f"{host}/team/bot:1-image"


def everything(artifact: LocalArtifact) -> dict[str, str]:
    """Return the digest of each file, with the manifest's."""
    manifest = f"sha256:{hashlib.sha256(artifact.manifest).hexdigest()}"
    return {**digests(artifact), "manifest.json": manifest}


def test_the_mounted_files_are_the_published_ones(tmp_path: Path) -> None:
    artifact = make_artifact(tmp_path / "artifact", megabytes=20)
    with registry_server(tmp_path / "registry") as host:
        found = mount_image(published(host, artifact, tmp_path))
    assert found.files == everything(artifact)
    assert found.file_system == "overlayfs"


def test_a_model_of_many_shards_is_mounted_too(tmp_path: Path) -> None:
    """Overlay file systems have a limit of layers; the largest models have about 200 shards."""
    folder = make_folder(tmp_path / "artifact")
    for number in range(200):
        (folder / "merged" / f"shard-{number}.json").write_text(str(number))
    artifact = read_artifact(folder, SPEC)
    with registry_server(tmp_path / "registry") as host:
        found = mount_image(published(host, artifact, tmp_path))
    assert len(found.files) > 200
    assert found.files == everything(artifact)
