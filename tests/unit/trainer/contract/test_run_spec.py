from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from finetune_trainer.contract.run_spec import Thresholds, read_run_spec
from finetune_trainer.errors import Reason, StageError


def write(folder: Path, document: Any) -> Path:
    path = folder / "run.json"
    path.write_text(json.dumps(document))
    return path


def test_batches_are_split_into_whole_micro_batches(tmp_path: Path, run_document: dict[str, Any]) -> None:
    assert read_run_spec(write(tmp_path, run_document)).training.gradient_accumulation_steps == 2
    run_document["training"]["microBatchSize"] = 3
    with pytest.raises(StageError, match="microBatchSize must divide effectiveBatchSize, found 3 and 4"):
        read_run_spec(write(tmp_path, run_document))


@pytest.mark.parametrize("changes", [{"epochs": 1}, {"maximumSteps": None}])
def test_a_run_has_epochs_or_steps_and_not_both(
    tmp_path: Path, run_document: dict[str, Any], changes: dict[str, Any]
) -> None:
    run_document["training"].update(changes)
    with pytest.raises(StageError, match="exactly one of `epochs` and `maximumSteps`"):
        read_run_spec(write(tmp_path, run_document))


def test_the_message_names_the_first_wrong_member(tmp_path: Path, run_document: dict[str, Any]) -> None:
    run_document["training"]["lora"]["rank"] = 0
    with pytest.raises(StageError, match=r"`training\.lora\.rank`") as caught:
        read_run_spec(write(tmp_path, run_document))
    assert caught.value.reason is Reason.INVALID_RUN_SPEC


@pytest.mark.parametrize("document", [[], {}, {"version": 1}, {"version": "2.0"}])
def test_an_unsupported_version_names_the_remedy(tmp_path: Path, document: Any) -> None:
    with pytest.raises(StageError, match="use operator and trainer image of the same release"):
        read_run_spec(write(tmp_path, document))


def test_thresholds_that_are_not_given_have_the_contracts_defaults(
    tmp_path: Path, run_document: dict[str, Any]
) -> None:
    assert read_run_spec(write(tmp_path, run_document)).dataset.thresholds == Thresholds()
