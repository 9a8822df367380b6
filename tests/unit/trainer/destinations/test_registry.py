"""Publishing to a real OCI registry on loopback."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from finetune_trainer.contract.destinations import RegistryDestination
from finetune_trainer.destinations.registry import RegistryPublisher
from finetune_trainer.errors import Reason, StageError
from finetune_trainer.sources.network import Network
from finetune_trainer.sources.retry import RetryPolicy

from tests.support.publishing import OTHER, SPEC, digests, make_artifact
from tests.support.servers.registry import pull, pull_blob, pull_image, registry_server, unpack

pytestmark = pytest.mark.object_stores


@pytest.fixture
def host(tmp_path: Path) -> Iterator[str]:
    with registry_server(tmp_path / "registry") as host:
        yield host


@pytest.fixture
def publisher(host: str, tmp_path: Path) -> Callable[..., RegistryPublisher]:
    def make(
        *, spec: str = SPEC, tag: str = "1", image_tag: str | None = None, overwrite: bool = False
    ) -> RegistryPublisher:
        destination = RegistryDestination(
            kind="Oci",
            name="registry",
            reference=f"{host}/team/bot:{tag}",
            image_tag=image_tag,
            overwrite=overwrite,
        )
        network = Network(retry=RetryPolicy(0))
        return RegistryPublisher(destination, spec, tmp_path / "layers.json", {}, network, allow_private=True)

    return make


def ignore(_done: int) -> None:
    pass


def test_a_tag_names_a_model_pack_with_every_file(
    host: str, publisher: Callable[..., RegistryPublisher], tmp_path: Path
) -> None:
    artifact = make_artifact(tmp_path / "artifact", megabytes=4)
    sent: list[int] = []
    digest = publisher().publish(artifact, sent.append)
    assert sent == sorted(sent)
    manifest = pull(host, "team/bot", "1")
    assert manifest is not None
    assert manifest["artifactType"] == "application/vnd.cncf.model.manifest.v1+json"
    assert manifest["config"]["mediaType"] == "application/vnd.cncf.model.config.v1+json"
    found = unpack(host, "team/bot", manifest)
    assert found.pop("manifest.json") == artifact.manifest
    assert {name: f"sha256:{hashlib.sha256(body).hexdigest()}" for name, body in found.items()} == digests(
        artifact
    )
    kinds = {
        layer["annotations"]["org.cncf.model.filepath"]: layer["mediaType"] for layer in manifest["layers"]
    }
    prefix = "application/vnd.cncf.model."
    assert kinds["adapter/adapter_model.safetensors"] == f"{prefix}weight.v1.tar"
    assert kinds["merged/config.json"] == f"{prefix}weight.config.v1.tar"
    assert kinds["adapter/README.md"] == kinds["report/merge.json"] == f"{prefix}doc.v1.tar"
    config = json.loads(pull_blob(host, "team/bot", manifest["config"]["digest"]))
    assert config["modelfs"]["diffIds"] == [layer["digest"] for layer in manifest["layers"]]
    assert pull(host, "team/bot", str(digest)) == manifest
    assert publisher().published() == json.loads(artifact.manifest)


@pytest.mark.parametrize("architecture", ["amd64", "arm64"])
def test_an_image_beside_it_has_the_same_layers_for_every_platform(
    host: str, publisher: Callable[..., RegistryPublisher], tmp_path: Path, architecture: str
) -> None:
    artifact = make_artifact(tmp_path / "artifact")
    publisher().publish(artifact, ignore)
    manifest = pull(host, "team/bot", "1")
    image = pull_image(host, "team/bot", "1-image", architecture)
    assert manifest is not None
    assert [layer["digest"] for layer in image["layers"]] == [layer["digest"] for layer in manifest["layers"]]
    assert {layer["mediaType"] for layer in image["layers"]} == {"application/vnd.oci.image.layer.v1.tar"}
    config = json.loads(pull_blob(host, "team/bot", image["config"]["digest"]))
    assert config["architecture"] == architecture
    assert config["rootfs"]["diff_ids"] == [layer["digest"] for layer in image["layers"]]


def test_the_tag_of_the_image_can_be_chosen(
    host: str, publisher: Callable[..., RegistryPublisher], tmp_path: Path
) -> None:
    publisher(image_tag="volume").publish(make_artifact(tmp_path / "artifact"), ignore)
    assert pull(host, "team/bot", "1-image") is None
    assert pull_image(host, "team/bot", "volume")["layers"]
    assert publisher(image_tag="volume").published() is not None
    assert publisher().published() is None, "the image of another tag is no proof for this one"


def test_an_image_tag_with_other_content_is_not_replaced(
    host: str, publisher: Callable[..., RegistryPublisher], tmp_path: Path
) -> None:
    publisher(spec=OTHER, tag="1-image").publish(make_artifact(tmp_path / "a", spec=OTHER), ignore)
    before = pull(host, "team/bot", "1-image")
    with pytest.raises(StageError, match="the tag 1-image with other content") as caught:
        publisher().probe()
    assert caught.value.reason is Reason.DESTINATION_UNWRITABLE
    with pytest.raises(StageError, match="the tag 1-image with other content"):
        publisher().publish(make_artifact(tmp_path / "b"), ignore)
    assert pull(host, "team/bot", "1-image") == before
    assert pull(host, "team/bot", "1") is None


def test_a_file_that_changed_after_its_verification_is_not_published(
    host: str, publisher: Callable[..., RegistryPublisher], tmp_path: Path
) -> None:
    artifact = make_artifact(tmp_path / "artifact")
    weights = next(file for file in artifact.files if file.name.endswith(".safetensors"))
    weights.path.write_bytes(bytes(weights.bytes))
    with pytest.raises(StageError) as caught:
        publisher().publish(artifact, ignore)
    assert caught.value.reason is Reason.ARTIFACT_VERIFICATION_FAILED
    assert weights.name in caught.value.message
    assert pull(host, "team/bot", "1") is None


def test_a_second_try_does_not_digest_the_files_again(
    host: str, publisher: Callable[..., RegistryPublisher], tmp_path: Path
) -> None:
    artifact = make_artifact(tmp_path / "artifact")
    first = publisher().publish(artifact, ignore)
    for file in artifact.files:
        file.path.unlink()
    assert publisher().publish(artifact, ignore) == first
    assert publisher(tag="2").publish(artifact, ignore) == first
    assert pull(host, "team/bot", "2") == pull(host, "team/bot", "1")


def test_the_same_bytes_have_the_same_digest_and_are_not_sent_again(
    publisher: Callable[..., RegistryPublisher], tmp_path: Path
) -> None:
    artifact = make_artifact(tmp_path / "artifact")
    first = publisher().publish(artifact, ignore)
    assert publisher().publish(artifact, ignore) == first
    assert publisher(tag="2").publish(artifact, ignore) == first


@pytest.mark.parametrize("overwrite", [False, True])
def test_another_tag_is_replaced_only_if_the_job_says_so(
    host: str, publisher: Callable[..., RegistryPublisher], tmp_path: Path, *, overwrite: bool
) -> None:
    publisher(spec=OTHER).publish(make_artifact(tmp_path / "theirs", spec=OTHER, seed=2), ignore)
    before = pull(host, "team/bot", "1")
    ours = make_artifact(tmp_path / "ours")
    mine = publisher(overwrite=overwrite)
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


def test_a_probe_leaves_no_blob_behind(publisher: Callable[..., RegistryPublisher], tmp_path: Path) -> None:
    publisher().probe()
    left = [path for path in (tmp_path / "registry" / "blobs").rglob("data") if path.is_file()]
    assert left == []
