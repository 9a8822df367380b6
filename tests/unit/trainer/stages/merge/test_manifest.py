from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from finetune_trainer.contract.result import PublishedResult
from finetune_trainer.contract.run_spec import RunSpec
from finetune_trainer.stages.merge.manifest import (
    base_as_trained_digest,
    content_digest,
    image_of,
    manifest_document,
    seeds_of,
    spec_document,
)
from finetune_trainer.stages.merge.publish import SealedFile

from tests.support.manifests import manifest_schema, require_schema
from tests.support.results import MERGE, PREPARE, PROVEN, TRAIN

_FILES: dict[str, SealedFile] = {"merged/a": {"digest": "sha256:0", "bytes": 1}}


def test_the_manifest_names_base_data_tools_files_and_results(make_run: Callable[..., RunSpec]) -> None:
    run = make_run()
    results = PublishedResult(prepare=PREPARE, train=TRAIN, merge=MERGE)
    manifest = manifest_document(run, results, _FILES)
    assert manifest["specHash"] == run.spec_hash
    assert manifest["base"]["name"] == "tiny"
    assert manifest["base"]["quantizedDigest"] == PREPARE.model.digest
    assert manifest["base"]["asTrainedDigest"] is None
    assert manifest["datasetDigest"] == PREPARE.dataset.digest
    assert manifest["results"] == results.document()
    assert manifest["gate"] == "Report"
    assert {"torch", "peft"} <= manifest["tools"].keys()
    json.dumps(manifest)


def test_the_manifest_has_how_the_weights_were_merged_and_what_survived(
    make_run: Callable[..., RunSpec],
) -> None:
    run = make_run()
    output = run.output.model_copy(update={"merge_onto": "OriginalWeights"})
    results = PublishedResult(prepare=PREPARE, train=TRAIN, merge=PROVEN)
    survival = {"b.weight": (0.5, 0.75), "a.weight": (float("nan"), float("inf"))}
    manifest = manifest_document(run.model_copy(update={"output": output}), results, {}, survival)
    assert manifest["merge"] == {
        "onto": "OriginalWeights",
        "dtype": "BFloat16",
        "rounding": "Stochastic",
        "tensors": {
            "a.weight": {"projection": None, "relativeError": None},
            "b.weight": {"projection": 0.5, "relativeError": 0.75},
        },
    }
    assert (
        manifest["base"]["asTrainedDigest"]
        == base_as_trained_digest(PROVEN.artifacts)
        == "sha256:" + "b" * 64
    )
    json.dumps(manifest, allow_nan=False)


def test_an_adapter_alone_has_no_merge_in_the_manifest(make_run: Callable[..., RunSpec]) -> None:
    run = make_run()
    output = run.output.model_copy(update={"artifacts": ("Adapter",)})
    results = PublishedResult(prepare=PREPARE, train=TRAIN, merge=MERGE)
    assert manifest_document(run.model_copy(update={"output": output}), results, {})["merge"] is None


def test_the_manifest_has_everything_that_its_schema_asks_for(make_run: Callable[..., RunSpec]) -> None:
    results = PublishedResult(prepare=PREPARE, train=TRAIN, merge=PROVEN)
    files = {"merged/a": {"digest": "sha256:" + "0" * 64, "bytes": 1}}
    survival = {"a.weight": (float("nan"), 0.5)}
    run = make_run(specHash="sha256:" + "4" * 64)
    manifest = manifest_document(run, results, files, survival, "sha256:" + "5" * 64, {})  # type: ignore[arg-type]
    manifest["statement"] = "provenance/model.sig"
    require_schema(manifest)
    assert set(manifest_schema()["properties"]) == set(manifest), "the schema describes every member"
    assert manifest["base"]["originalDigest"] == "sha256:" + "5" * 64
    assert manifest["seeds"] == {"split": 42, "training": 42, "bootstrap": 42, "rounding": None}
    assert manifest["dataset"]["kept"] == PREPARE.dataset.kept
    assert manifest["evaluation"]["verdict"] == TRAIN.evaluation.verdict


def test_a_manifest_of_an_earlier_release_still_obeys_the_schema(make_run: Callable[..., RunSpec]) -> None:
    run = make_run()
    manifest = manifest_document(run, PublishedResult(prepare=PREPARE, train=TRAIN, merge=MERGE), {})
    newer = ("contentDigest", "dataset", "spec", "seeds", "evaluation", "image")
    require_schema({**{name: manifest[name] for name in manifest if name not in newer}, "version": "1.1"})


def test_the_spec_in_the_manifest_names_no_place_on_the_machine(
    make_run: Callable[..., RunSpec], tmp_path: Path
) -> None:
    run = make_run()
    run = run.model_copy(
        update={"model": run.model.model_copy(update={"chat_template_path": tmp_path / "template.jinja"})}
    )
    spec = spec_document(run)
    assert str(tmp_path) not in json.dumps(spec)
    assert spec["model"] == {
        "source": "Directory",
        "name": "tiny",
        "revision": None,
        "chatTemplateArguments": {},
        "ownChatTemplate": True,
    }
    assert spec["dataset"]["source"] == "File"
    assert spec["dataset"]["validationFraction"] == 0.1


def test_the_digest_of_the_content_leaves_out_the_report_and_the_order_of_files() -> None:
    weights: SealedFile = {"digest": "sha256:1", "bytes": 1}
    card: SealedFile = {"digest": "sha256:2", "bytes": 2}
    report: SealedFile = {"digest": "sha256:3", "bytes": 3}
    files = {"merged/a": weights, "merged/b": card}
    with_report = {
        "report/job.json": report,
        "merged/b": card,
        "merged/a": weights,
    }
    assert content_digest(files) == content_digest(with_report)
    assert content_digest(files) != content_digest({"merged/a": card, "merged/b": weights})


@pytest.mark.parametrize(
    ("reference", "expected"),
    [
        (None, None),
        ("", None),
        ("registry.example/trainer:2", {"reference": "registry.example/trainer:2", "digest": None}),
        (
            "registry.example/trainer@sha256:" + "a" * 64,
            {"reference": "registry.example/trainer@sha256:" + "a" * 64, "digest": "sha256:" + "a" * 64},
        ),
    ],
)
def test_the_image_has_a_digest_only_if_its_reference_is_pinned(
    reference: str | None, expected: dict[str, str] | None
) -> None:
    assert image_of({} if reference is None else {"FINETUNE_IMAGE": reference}) == expected


def test_stochastic_rounding_has_a_seed(make_run: Callable[..., RunSpec]) -> None:
    run = make_run()
    output = run.output.model_copy(update={"merge_onto": "OriginalWeights"})
    assert seeds_of(run.model_copy(update={"output": output}))["rounding"] == 42
    alone = output.model_copy(update={"artifacts": ("Adapter",)})
    assert seeds_of(run.model_copy(update={"output": alone}))["rounding"] is None
