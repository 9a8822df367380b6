from __future__ import annotations

import json
from collections.abc import Callable

from finetune_trainer.contract.result import PublishedResult
from finetune_trainer.contract.run_spec import RunSpec
from finetune_trainer.stages.merge.manifest import base_as_trained_digest, manifest_document

from tests.support.results import MERGE, PREPARE, PROVEN, TRAIN

_FILES = {"merged/a": {"digest": "sha256:0", "bytes": 1}}


def test_the_manifest_names_base_data_tools_files_and_results(make_run: Callable[..., RunSpec]) -> None:
    run = make_run()
    results = PublishedResult(prepare=PREPARE, train=TRAIN, merge=MERGE)
    manifest = manifest_document(run, results, _FILES)  # type: ignore[arg-type]  # a table of files
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
