"""Manifests that other people wrote are read without trust."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from finetune_trainer.destinations.registry_documents import annotation, make_documents, manifest_layer
from finetune_trainer.destinations.tar_layers import LayerDigests, make_layers

from tests.support.publishing import SPEC, make_artifact


@pytest.mark.parametrize(
    "document",
    [{}, {"layers": None}, {"layers": [3]}, {"layers": [{}]}, {"layers": [{"annotations": []}]}],
)
def test_a_foreign_manifest_has_no_manifest_layer(document: dict[str, Any]) -> None:
    assert manifest_layer(document) is None


def test_a_foreign_digest_is_no_digest() -> None:
    layer = {"annotations": {"org.cncf.model.filepath": "manifest.json"}, "digest": ["x"]}
    assert manifest_layer({"layers": [layer]}) is None


def test_the_index_names_the_model_pack_and_the_same_layers_give_the_same_bytes(tmp_path: Path) -> None:
    artifact = make_artifact(tmp_path / "artifact")
    layers = make_layers(artifact, LayerDigests(tmp_path / "layers.json"), lambda: None)
    documents = make_documents(layers, SPEC)
    assert documents == make_documents(layers, SPEC)
    index = json.loads(documents.index)
    assert annotation(index, "dev.finetune.spec-hash") == SPEC
    assert index.keys() & {"subject"} == set(), "a registry without referrers must take it"
    assert len(documents.images) == len(index["manifests"]) == len({*documents.images}) == 2
    assert manifest_layer(json.loads(documents.model_pack)) == layers[-1].digest
