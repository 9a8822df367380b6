from __future__ import annotations

import json
from typing import Any

import pytest
from finetune_trainer.contract.result import MergeResult, StatisticsResult, VerificationResult
from finetune_trainer.contract.train_result import TrainResult

from tests.support.results import MERGE, PROVEN, TRAIN


def test_members_that_are_not_set_are_not_written_but_nulls_are() -> None:
    bare = TrainResult(
        device="cpu",
        steps=1,
        training_loss=1.0,
        adapter_digest="sha256:0",
        memory=None,
        evaluation=TRAIN.evaluation,
    )
    assert bare.document()["memory"] is None
    assert "tokensPerSecond" not in bare.document()


def test_integers_and_floats_keep_their_types() -> None:
    head = StatisticsResult.model_validate(
        {"warnings": [{"code": "FewRows", "value": 20.0, "threshold": 50, "message": "m"}]}
    )
    (warning,) = head.document()["warnings"]
    assert (repr(warning["value"]), repr(warning["threshold"])) == ("20.0", "50")


@pytest.mark.parametrize("document", [None, {}, {"artifacts": "many"}, []])
def test_a_marker_without_a_complete_result_counts_as_not_finished(document: Any) -> None:
    assert MergeResult.read(document) is None


def test_members_of_a_later_version_are_ignored() -> None:
    later = {**MERGE.document(), "signature": "later"}
    assert MergeResult.read(later) == MERGE


def test_a_number_of_a_proof_that_is_not_finite_is_not_known() -> None:
    """A result with such a number could not be sent, and the stage would be lost."""
    assert PROVEN.verification is not None
    numbers = {**PROVEN.verification.document(), "slope": float("nan"), "noiseDivergence": float("inf")}
    read = VerificationResult.model_validate(numbers)
    assert (read.slope, read.noise_divergence, read.base_divergence) == (None, None, 0.116)
    json.dumps(read.document(), allow_nan=False)
