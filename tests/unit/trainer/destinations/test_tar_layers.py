"""Files as tars: the same bytes on every machine, in a form that other programs unpack."""

from __future__ import annotations

import hashlib
import json
import os
import stat
import subprocess
from pathlib import Path

import pytest
from finetune_trainer.destinations.local_artifact import LocalArtifact, LocalFile
from finetune_trainer.destinations.tar_layers import LayerDigests, TarLayer, make_layers, unpack_manifest

from tests.support.publishing import SPEC, make_artifact

LONG = "merged/" + "very-long-folder-name/" * 6 + "model-00001-of-00002.safetensors"


def layers_of(artifact: LocalArtifact, tmp_path: Path) -> list[TarLayer]:
    return make_layers(artifact, LayerDigests(tmp_path / "layers.json"), lambda: None)


def tar_of(layer: TarLayer) -> bytes:
    return b"".join(layer.chunks(lambda _: None))


def artifact_of(folder: Path, files: dict[str, bytes]) -> LocalArtifact:
    """Return an artifact with exactly these files."""
    found = []
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        found.append(LocalFile(name, path, f"sha256:{hashlib.sha256(content).hexdigest()}", len(content)))
    return LocalArtifact(tuple(found), b'{"specHash": "x"}', SPEC)


def test_each_layer_names_its_own_bytes(tmp_path: Path) -> None:
    artifact = make_artifact(tmp_path / "artifact")
    layers = layers_of(artifact, tmp_path)
    assert [layer.name for layer in layers] == [*(file.name for file in artifact.files), "manifest.json"]
    for layer in layers:
        tar = tar_of(layer)
        assert len(tar) == layer.size
        assert f"sha256:{hashlib.sha256(tar).hexdigest()}" == layer.digest


def test_owner_times_and_mode_of_a_file_do_not_change_its_layer(tmp_path: Path) -> None:
    artifact = artifact_of(tmp_path, {"merged/config.json": b"{}"})
    (before, _) = layers_of(artifact, tmp_path / "a")
    os.utime(artifact.files[0].path, (1, 1))
    artifact.files[0].path.chmod(0o600)
    (after, _) = layers_of(artifact, tmp_path / "b")
    assert after.digest == before.digest
    assert tar_of(after) == tar_of(before)
    # Stored layers are shared only as long as these bytes stay as they are.
    assert before.digest == "sha256:6b7111181c7c5fc688fb88ec582685baba99e6c628f08ee05ce94b96c078a0a3"


@pytest.mark.parametrize("name", ["config.json", "merged/config.json", LONG, "merged/模型.json"])
@pytest.mark.parametrize("size", [0, 1, 511, 512, 513, (1 << 20) + 3])
def test_tar_unpacks_a_layer_to_the_file_that_anybody_may_read(tmp_path: Path, name: str, size: int) -> None:
    content = os.urandom(size)
    (layer, _) = layers_of(artifact_of(tmp_path / "from", {name: content}), tmp_path)
    target = tmp_path / "to"
    target.mkdir()
    subprocess.run(["tar", "-x", "-C", str(target)], input=tar_of(layer), check=True, umask=0o077)
    assert (target / name).read_bytes() == content
    assert stat.S_IMODE((target / name).stat().st_mode) & 0o444


def test_a_file_of_more_than_8_gib_has_its_size_in_the_header(tmp_path: Path) -> None:
    path = tmp_path / "huge"
    size = (8 << 30) + 5
    with path.open("wb") as file:
        file.truncate(size)
    known = tmp_path / "layers.json"
    LayerDigests(known).record("huge", "sha256:x", "sha256:y")
    artifact = LocalArtifact((LocalFile("huge", path, "sha256:x", size),), b"{}", SPEC)
    (layer, _) = make_layers(artifact, LayerDigests(known), lambda: None)
    head = next(iter(layer.chunks(lambda _: None)))
    listed = subprocess.run(["tar", "-tv"], input=head, capture_output=True, check=False, text=False)
    assert str(size).encode() in listed.stdout


def test_a_damaged_record_of_digests_costs_only_time(tmp_path: Path) -> None:
    artifact = artifact_of(tmp_path, {"config.json": b"{}"})
    wanted = layers_of(artifact, tmp_path / "fresh")[0].digest
    for damaged in ("", "[]", "{", json.dumps({f"{artifact.files[0].digest} config.json": 7})):
        (tmp_path / "layers.json").write_text(damaged)
        assert layers_of(artifact, tmp_path)[0].digest == wanted


def test_a_record_of_digests_that_cannot_be_written_costs_only_time(tmp_path: Path) -> None:
    artifact = artifact_of(tmp_path, {"config.json": b"{}"})
    (tmp_path / "file").write_text("in the way")
    kept, lost = (layers_of(artifact, tmp_path / folder) for folder in ("fresh", "file"))
    assert [layer.digest for layer in lost] == [layer.digest for layer in kept]


def test_the_manifest_comes_back_from_its_layer_alone(tmp_path: Path) -> None:
    artifact = make_artifact(tmp_path / "artifact")
    layers = layers_of(artifact, tmp_path)
    assert unpack_manifest(tar_of(layers[-1])) == artifact.manifest
    assert unpack_manifest(tar_of(layers[0])) == b""
    assert unpack_manifest(b"no tar") == b""
    assert unpack_manifest(b"") == b""


def test_progress_counts_the_bytes_of_files(tmp_path: Path) -> None:
    artifact = artifact_of(tmp_path, {"a": bytes(3 << 20)})
    (layer, _) = layers_of(artifact, tmp_path)
    seen: list[int] = []
    for _ in layer.chunks(seen.append):
        pass
    assert seen == sorted(seen)
    assert seen[-1] == layer.content_size == 3 << 20
