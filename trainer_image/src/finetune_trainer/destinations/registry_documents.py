"""Documents that a registry gets: the CNCF ModelPack manifest, and an ordinary image of the same layers.

Kubernetes mounts an image volume only if the container runtime can unpack its layers, and containerd knows the layer types
of images alone. The layers are uncompressed tars, so one blob serves both documents under two types. Formats: the CNCF's
model-spec, docs/spec.md and docs/config.md (media types `application/vnd.cncf.model.*`), and the OCI's image-spec.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from finetune_trainer.destinations.registry_client import INDEX_TYPE, MANIFEST_TYPE
from finetune_trainer.workspace.destination import MANIFEST

if TYPE_CHECKING:
    from collections.abc import Sequence

    from finetune_trainer.destinations.tar_layers import TarLayer

ARTIFACT_TYPE = "application/vnd.cncf.model.manifest.v1+json"
CONFIG_TYPE = "application/vnd.cncf.model.config.v1+json"
FILE_PATH = "org.cncf.model.filepath"
SPEC_HASH = "dev.finetune.spec-hash"
"""Annotation of the ModelPack manifest and of the image's index that says whose content it is."""
MODEL_PACK = "dev.finetune.model-pack"
"""Annotation of the image's index: digest of the ModelPack manifest with the same files."""
_WEIGHTS = "application/vnd.cncf.model.weight.v1.tar"
_SETTINGS = "application/vnd.cncf.model.weight.config.v1.tar"
_CODE = "application/vnd.cncf.model.code.v1.tar"
_DOCUMENT = "application/vnd.cncf.model.doc.v1.tar"
_IMAGE_CONFIG = "application/vnd.oci.image.config.v1+json"
_IMAGE_LAYER = "application/vnd.oci.image.layer.v1.tar"
_ARCHITECTURES = ("amd64", "arm64")
"""A runtime takes only an image of its own platform, also as a volume."""


@dataclass(frozen=True)
class Documents:
    """All documents of one publication. `small` are the blobs beside the layers, `images` what the index refers to."""

    model_pack: bytes
    index: bytes
    images: tuple[bytes, ...]
    small: tuple[bytes, ...]


def make_documents(layers: Sequence[TarLayer], spec_hash: str) -> Documents:
    """Return the documents for these layers; the same layers give the same bytes."""
    config = _encode(_model_config(layers))
    model_pack = _encode(
        {
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "artifactType": ARTIFACT_TYPE,
            "config": _descriptor(CONFIG_TYPE, config),
            "layers": [_layer(layer, _media_type(layer.name)) for layer in layers],
            "annotations": {SPEC_HASH: spec_hash},
        }
    )
    configs = tuple(_encode(_image_config(layers, architecture)) for architecture in _ARCHITECTURES)
    images = tuple(_encode(_image(layers, each)) for each in configs)
    index = _encode(
        {
            "schemaVersion": 2,
            "mediaType": INDEX_TYPE,
            "manifests": [
                {
                    **_descriptor(MANIFEST_TYPE, image),
                    "platform": {"os": "linux", "architecture": architecture},
                }
                for image, architecture in zip(images, _ARCHITECTURES, strict=True)
            ],
            "annotations": {SPEC_HASH: spec_hash, MODEL_PACK: digest_of_bytes(model_pack)},
        }
    )
    return Documents(model_pack, index, images, (config, *configs))


def digest_of_bytes(content: bytes) -> str:
    """Return the `sha256:` digest of a document."""
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def annotation(document: dict[str, Any], name: str) -> Any:
    """Return an annotation of a manifest, an index or a layer that somebody may have changed; None if there is none."""
    annotations = document.get("annotations")
    return annotations.get(name) if isinstance(annotations, dict) else None


def manifest_layer(model_pack: dict[str, Any]) -> str | None:
    """Return the digest of the layer with the artifacts' manifest; None if a ModelPack has none."""
    layers = model_pack.get("layers")
    for layer in layers if isinstance(layers, list) else ():
        if isinstance(layer, dict) and annotation(layer, FILE_PATH) == MANIFEST:
            digest = layer.get("digest")
            return digest if isinstance(digest, str) else None
    return None


def _model_config(layers: Sequence[TarLayer]) -> dict[str, Any]:
    """Return the ModelPack config: the format, and the digests of the layers in their order."""
    return {
        "descriptor": {"name": "fine-tuned model"},
        "config": {"format": "safetensors"},
        "modelfs": {"type": "layers", "diffIds": [layer.digest for layer in layers]},
    }


def _image_config(layers: Sequence[TarLayer], architecture: str) -> dict[str, Any]:
    return {
        "architecture": architecture,
        "os": "linux",
        "config": {},
        "rootfs": {"type": "layers", "diff_ids": [layer.digest for layer in layers]},
    }


def _image(layers: Sequence[TarLayer], config: bytes) -> dict[str, Any]:
    return {
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "config": _descriptor(_IMAGE_CONFIG, config),
        "layers": [_layer(layer, _IMAGE_LAYER) for layer in layers],
    }


def _layer(layer: TarLayer, media_type: str) -> dict[str, Any]:
    return {
        "mediaType": media_type,
        "digest": layer.digest,
        "size": layer.size,
        "annotations": {FILE_PATH: layer.name},
    }


def _media_type(name: str) -> str:
    if name.endswith(".safetensors"):
        return _WEIGHTS
    if name.startswith("report/") or name.endswith((".md", ".html")) or name == MANIFEST:
        return _DOCUMENT
    return _CODE if name.endswith(".py") else _SETTINGS


def _descriptor(media_type: str, content: bytes) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": digest_of_bytes(content), "size": len(content)}


def _encode(document: dict[str, Any]) -> bytes:
    return json.dumps(document, sort_keys=True, separators=(",", ":")).encode()
