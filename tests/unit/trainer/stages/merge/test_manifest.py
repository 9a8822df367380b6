from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from finetune_trainer.contract.result import PublishedResult
from finetune_trainer.contract.run_spec import RunSpec
from finetune_trainer.stages.merge.manifest import manifest_document, model_card

from tests.support.results import MERGE, PREPARE, TRAIN


def test_the_manifest_names_base_data_tools_files_and_results(make_run: Callable[..., RunSpec]) -> None:
    run = make_run()
    results = PublishedResult(prepare=PREPARE, train=TRAIN, merge=MERGE)
    manifest = manifest_document(run, results, {"merged/a": {"digest": "sha256:0", "bytes": 1}})
    assert manifest["specHash"] == run.spec_hash
    assert manifest["base"]["name"] == "tiny"
    assert manifest["base"]["quantizedDigest"] == PREPARE.model.digest
    assert manifest["datasetDigest"] == PREPARE.dataset.digest
    assert manifest["results"] == results.document()
    assert {"torch", "peft"} <= manifest["tools"].keys()
    json.dumps(manifest)


@pytest.mark.parametrize(("kind", "library"), [("Adapter", "peft"), ("Merged", "transformers")])
def test_a_card_names_the_library_that_loads_its_artifact(
    make_run: Callable[..., RunSpec], kind: str, library: str
) -> None:
    card = model_card(make_run(), kind, PREPARE, TRAIN, MERGE.verification)  # type: ignore[arg-type]  # a table of kinds
    assert f"library_name: {library}\n" in card
    assert 'base_model: "tiny"\n' in card
    assert f"| verdict | {TRAIN.evaluation.verdict} on {TRAIN.evaluation.rows} held-out rows |" in card
    assert "KL(trained, merged)" in card


def test_a_card_without_a_merged_model_has_no_divergence(make_run: Callable[..., RunSpec]) -> None:
    assert "KL(" not in model_card(make_run(), "Adapter", PREPARE, TRAIN, None)


def test_a_card_names_the_template_arguments_of_the_training(make_run: Callable[..., RunSpec]) -> None:
    run = make_run()
    model = run.model.model_copy(update={"chat_template_arguments": {"enable_thinking": False}})
    card = model_card(run.model_copy(update={"model": model}), "Merged", PREPARE, TRAIN, MERGE.verification)
    assert '`{"enable_thinking": false}`' in card


def test_a_card_names_the_tokens_at_which_an_answer_ends(make_run: Callable[..., RunSpec]) -> None:
    card = model_card(make_run(), "Merged", PREPARE, TRAIN, MERGE.verification)
    assert "An answer ends with `<|im_end|>` (2)" in card
    dataset = PREPARE.dataset.model_copy(update={"end_tokens": None})
    earlier = PREPARE.model_copy(update={"dataset": dataset})
    assert "An answer ends" not in model_card(make_run(), "Merged", earlier, TRAIN, MERGE.verification)
