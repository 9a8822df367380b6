"""Publishes to an OCI registry: a tag with a CNCF ModelPack artifact, and one with the same layers as an ordinary image.

The image is pushed first and the ModelPack's tag last, so that this tag proves both. A tag is taken only if all its blobs
are there: readers see all files or none.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from finetune_trainer.destinations.publisher import OnBytes, changed, parse_manifest, taken
from finetune_trainer.destinations.registry_client import INDEX_TYPE, RegistryClient
from finetune_trainer.destinations.registry_documents import (
    MODEL_PACK,
    SPEC_HASH,
    annotation,
    digest_of_bytes,
    make_documents,
    manifest_layer,
)
from finetune_trainer.destinations.tar_layers import LayerDigests, make_layers, unpack_manifest
from finetune_trainer.sources.fetch_target import destination_target

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from finetune_trainer.contract.destinations import RegistryDestination
    from finetune_trainer.destinations.local_artifact import LocalArtifact
    from finetune_trainer.sources.network import Network


class RegistryPublisher:
    """Two tags of one repository. `digests_path` is a file of the workspace for the digests of layers."""

    def __init__(
        self,
        destination: RegistryDestination,
        spec_hash: str,
        digests_path: Path,
        environment: Mapping[str, str],
        network: Network,
        *,
        allow_private: bool,
    ) -> None:
        self._destination = destination
        self._spec_hash = spec_hash
        self._digests_path = digests_path
        self._open = partial(
            RegistryClient,
            destination,
            destination_target(destination.name),
            environment,
            network,
            allow_private=allow_private,
        )

    def probe(self) -> None:
        """Read both tags, then begin an upload and cancel it."""
        with self._open() as client:
            for tag in self._tags(client):
                self._require_free(tag, client.manifest(tag))
            client.try_upload()

    def published(self) -> dict[str, Any] | None:
        """Read the artifacts' manifest through the tag. A registry takes no tag for blobs that are missing."""
        with self._open() as client:
            tag, image_tag = self._tags(client)
            pushed = client.manifest(tag) or b""
            model_pack = parse_manifest(pushed)
            layer = manifest_layer(model_pack)
            if layer is None or annotation(model_pack, SPEC_HASH) != self._spec_hash:
                return None
            index = parse_manifest(client.manifest(image_tag) or b"")
            if annotation(index, MODEL_PACK) != digest_of_bytes(pushed):
                return None
            manifest = parse_manifest(unpack_manifest(client.blob(layer)))
            return manifest if manifest.get("specHash") == self._spec_hash else None

    def publish(self, artifact: LocalArtifact, on_bytes: OnBytes) -> str | None:
        """Upload the blobs that the repository lacks, then the image and the ModelPack under their tags; return its digest."""
        layers = make_layers(artifact, LayerDigests(self._digests_path), lambda: on_bytes(0))
        documents = make_documents(layers, artifact.spec_hash)
        digest = digest_of_bytes(documents.model_pack)
        with self._open() as client:
            tag, image_tag = self._tags(client)
            wanted = {image_tag: documents.index, tag: documents.model_pack}
            found = {each: client.manifest(each) for each in wanted}
            if found == wanted:
                return digest
            for each, pushed in found.items():
                self._require_free(each, pushed)
            done = 0
            for layer in layers:
                if not client.has_blob(layer.digest):
                    client.put_blob(
                        layer.digest, layer.size, partial(layer.chunks, partial(_report, on_bytes, done))
                    )
                done += layer.content_size
                on_bytes(done)
            for small in documents.small:
                if not client.has_blob(digest_of_bytes(small)):
                    client.put_blob(digest_of_bytes(small), len(small), partial(_once, small))
            for image in documents.images:
                client.put_manifest(digest_of_bytes(image), image)
            client.put_manifest(image_tag, documents.index, INDEX_TYPE)
            client.put_manifest(tag, documents.model_pack)
            for each, content in wanted.items():
                if client.manifest(each) != content:
                    raise changed(self._destination.name, f"the tag {each}")
        return digest

    def _tags(self, client: RegistryClient) -> tuple[str, str]:
        """Return the tag of the ModelPack and that of the image."""
        return client.tag, self._destination.image_tag_of(client.tag)

    def _require_free(self, tag: str, pushed: bytes | None) -> None:
        """Raise StageError unless the tag is free, this spec's, or may be overwritten."""
        if pushed is None or self._destination.overwrite:
            return
        if annotation(parse_manifest(pushed), SPEC_HASH) != self._spec_hash:
            raise taken(self._destination.name, f"the tag {tag} with other content")


def _once(content: bytes) -> Iterator[bytes]:
    yield content


def _report(on_bytes: OnBytes, before: int, sent: int) -> None:
    on_bytes(before + sent)
