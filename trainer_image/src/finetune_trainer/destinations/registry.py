"""Publishes to an OCI registry as a CNCF ModelPack artifact.

Each file is a layer of its own bytes, so the digests in the registry are those of the artifacts' manifest. A tag names the
ModelPack manifest, which is pushed last: readers see all files or none. Format: the CNCF's model-spec,
docs/spec.md and docs/config.md (media types `application/vnd.cncf.model.*`).
"""

from __future__ import annotations

import hashlib
import json
from functools import partial
from typing import TYPE_CHECKING, Any

from finetune_trainer.destinations.publisher import OnBytes, changed, parse_manifest, taken
from finetune_trainer.destinations.registry_client import MANIFEST_TYPE, RegistryClient
from finetune_trainer.sources.fetch_target import destination_target
from finetune_trainer.workspace.destination import MANIFEST

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from finetune_trainer.contract.destinations import RegistryDestination
    from finetune_trainer.destinations.local_artifact import LocalArtifact
    from finetune_trainer.sources.network import Network

ARTIFACT_TYPE = "application/vnd.cncf.model.manifest.v1+json"
CONFIG_TYPE = "application/vnd.cncf.model.config.v1+json"
FILE_PATH = "org.cncf.model.filepath"
SPEC_HASH = "dev.finetune.spec-hash"
"""Annotation of the ModelPack manifest that says whose content it is."""
_WEIGHTS = "application/vnd.cncf.model.weight.v1.raw"
_SETTINGS = "application/vnd.cncf.model.weight.config.v1.raw"
_CODE = "application/vnd.cncf.model.code.v1.raw"
_DOCUMENT = "application/vnd.cncf.model.doc.v1.raw"


class RegistryPublisher:
    """One tag of one repository."""

    def __init__(
        self,
        destination: RegistryDestination,
        spec_hash: str,
        environment: Mapping[str, str],
        network: Network,
        *,
        allow_private: bool,
    ) -> None:
        self._destination = destination
        self._spec_hash = spec_hash
        self._open = partial(
            RegistryClient,
            destination,
            destination_target(destination.name),
            environment,
            network,
            allow_private=allow_private,
        )

    def probe(self) -> None:
        """Read the tag, then begin an upload and cancel it."""
        with self._open() as client:
            self._require_free(client.manifest(client.tag))
            client.try_upload()

    def published(self) -> dict[str, Any] | None:
        """Read the artifacts' manifest through the tag. A registry takes no tag for blobs that are missing."""
        with self._open() as client:
            pushed = parse_manifest(client.manifest(client.tag) or b"")
            if _spec_hash_of(pushed) != self._spec_hash:
                return None
            layers = [layer for layer in pushed.get("layers", ()) if _path_of(layer) == MANIFEST]
            return parse_manifest(client.blob(layers[0]["digest"])) if layers else None

    def publish(self, artifact: LocalArtifact, on_bytes: OnBytes) -> str | None:
        """Upload the blobs that the repository lacks, then the manifest under its tag; return its digest."""
        config = _encode(_config(artifact))
        content = _encode(_pack_manifest(artifact, config))
        digest = _digest(content)
        with self._open() as client:
            found = client.manifest(client.tag)
            if found == content:
                return digest
            self._require_free(found)
            done = 0
            for file in artifact.files:
                if not client.has_blob(file.digest):
                    client.put_file(file, partial(_report, on_bytes, done))
                done += file.bytes
                on_bytes(done)
            for small in (artifact.manifest, config):
                if not client.has_blob(_digest(small)):
                    client.put_blob(_digest(small), len(small), partial(_once, small))
            client.put_manifest(content)
            if client.manifest(client.tag) != content:
                raise changed(self._destination.name, f"the tag {client.tag}")
        return digest

    def _require_free(self, pushed: bytes | None) -> None:
        """Raise StageError unless the tag is free, this spec's, or may be overwritten."""
        if pushed is None or self._destination.overwrite:
            return
        if _spec_hash_of(parse_manifest(pushed)) != self._spec_hash:
            raise taken(self._destination.name, "a tag of that name with other content")


def _pack_manifest(artifact: LocalArtifact, config: bytes) -> dict[str, Any]:
    layers = [_layer(file.name, file.digest, file.bytes) for file in artifact.files]
    layers.append(_layer(MANIFEST, _digest(artifact.manifest), len(artifact.manifest)))
    return {
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "artifactType": ARTIFACT_TYPE,
        "config": {"mediaType": CONFIG_TYPE, "digest": _digest(config), "size": len(config)},
        "layers": layers,
        "annotations": {SPEC_HASH: artifact.spec_hash},
    }


def _layer(name: str, digest: str, size: int) -> dict[str, Any]:
    return {
        "mediaType": _media_type(name),
        "digest": digest,
        "size": size,
        "annotations": {FILE_PATH: name},
    }


def _media_type(name: str) -> str:
    if name.endswith(".safetensors"):
        return _WEIGHTS
    if name.startswith("report/") or name.endswith((".md", ".html")) or name == MANIFEST:
        return _DOCUMENT
    return _CODE if name.endswith(".py") else _SETTINGS


def _config(artifact: LocalArtifact) -> dict[str, Any]:
    """Return the ModelPack config: the format, and the digests of the layers in their order."""
    digests = [file.digest for file in artifact.files] + [_digest(artifact.manifest)]
    return {
        "descriptor": {"name": "fine-tuned model"},
        "config": {"format": "safetensors"},
        "modelfs": {"type": "layers", "diffIds": digests},
    }


def _encode(document: dict[str, Any]) -> bytes:
    return json.dumps(document, sort_keys=True, separators=(",", ":")).encode()


def _digest(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def _spec_hash_of(pushed: dict[str, Any]) -> Any:
    annotations = pushed.get("annotations")
    return annotations.get(SPEC_HASH) if isinstance(annotations, dict) else None


def _path_of(layer: Any) -> Any:
    annotations = layer.get("annotations") if isinstance(layer, dict) else None
    return annotations.get(FILE_PATH) if isinstance(annotations, dict) else None


def _once(content: bytes) -> Iterator[bytes]:
    yield content


def _report(on_bytes: OnBytes, before: int, sent: int) -> None:
    on_bytes(before + sent)
