"""One spec, run twice from its base to its manifest, in other folders and at another time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from finetune_trainer.contract.run_spec import RunSpec, Signing
from finetune_trainer.destinations.local_artifact import read_artifact
from finetune_trainer.destinations.tar_layers import LayerDigests, make_layers
from finetune_trainer.stages.merge.stage import merge
from finetune_trainer.stages.train.stage import train
from finetune_trainer.telemetry.reporter import NullReporter

from tests.support import workspaces
from tests.support.manifests import require_schema

_WITH_TIMES = {"report/index.html", "report/job.json"}
_OF_THE_RUN = {"publicationTime", "job", "statement"}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Return the destinations of two runs; the second one signs."""
    first, second = (tmp_path_factory.mktemp(name) for name in ("first", "second-with-a-longer-name"))
    key = second / "key.pem"
    private = ec.generate_private_key(ec.SECP256R1())
    key.write_bytes(private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    for root, signing in ((first, None), (second, Signing(key_path=key))):
        workspaces.write_base(root / "base", "llama", shard="60KB")
        workspaces.prepare(root / "workspace", root / "base")
        run = workspaces.run_spec(root / "workspace", root / "output", maximumSteps=4)
        run = RunSpec.model_validate(
            {
                **run.model_dump(by_alias=True),
                "job": {"namespace": "team", "name": "numbers", "uid": root.name},
            }
        )
        run = run.model_copy(update={"output": run.output.model_copy(update={"signing": signing})})
        train(run, NullReporter())
        merge(run, NullReporter())
    return first / "output", second / "output"


def read(destination: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((destination / "manifest.json").read_text())
    return document


def test_both_runs_publish_files_with_the_same_digests(runs: tuple[Path, Path]) -> None:
    first, second = (read(destination) for destination in runs)
    assert {name for name in first["files"] if first["files"][name] != second["files"][name]} == _WITH_TIMES
    assert first["contentDigest"] == second["contentDigest"]
    assert [artifact["digest"] for artifact in first["results"]["merge"]["artifacts"]] == [
        artifact["digest"] for artifact in second["results"]["merge"]["artifacts"]
    ]


def test_the_manifests_differ_only_in_what_belongs_to_a_run(runs: tuple[Path, Path]) -> None:
    first, second = (read(destination) for destination in runs)
    for manifest in (first, second):
        require_schema(manifest)
        for name in _OF_THE_RUN:
            del manifest[name]
        for name in _WITH_TIMES:
            del manifest["files"][name]
        # The speed is that of the machine at that moment.
        del manifest["results"]["train"]["tokensPerSecond"]
    assert first == second


def test_a_registry_gets_the_same_layers_from_both_runs(runs: tuple[Path, Path], tmp_path: Path) -> None:
    layers = []
    for number, destination in enumerate(runs):
        artifact = read_artifact(destination, read(destination)["specHash"])
        known = LayerDigests(tmp_path / f"{number}.json")
        layers.append({layer.name: layer.digest for layer in make_layers(artifact, known, lambda: None)})
    first, second = layers
    assert {name for name in first.keys() & second.keys() if first[name] != second[name]} == {
        *_WITH_TIMES,
        "manifest.json",
    }
    assert {name for name in first.keys() ^ second.keys() if not name.startswith("provenance/")} == set()


def test_no_published_file_tells_of_the_folders_in_which_it_was_made(runs: tuple[Path, Path]) -> None:
    for destination in runs:
        for path in (path for path in destination.rglob("*") if path.is_file()):
            assert str(destination.parent).encode() not in path.read_bytes(), path
