from __future__ import annotations

import pytest
from finetune_trainer.stages.merge.measures import Measures, RowMeasure, Slope
from finetune_trainer.stages.merge.proof import proof_result, survival
from finetune_trainer.stages.merge.verification import Verification
from finetune_trainer.stages.merge.weight_proof import TensorProof

MEASURES = Measures(
    rows=(RowMeasure(1, 4, 0.2, 0.001, 0.0005, 0.0001), RowMeasure(2, 4, 0.4, 0.003, 0.0005, 0.0001)),
    tokens=8,
    trained_loss=1.0,
    merged_loss=1.01,
    exact_loss=1.0,
    slope=Slope(0.99, 0.01),
    change=0.5,
    rounding=0.01,
    arithmetic=0.0,
    deviation=1e-5,
)
WEIGHTS = (
    TensorProof("a.weight", 10, 0, dot=0.9, intended=1.0, error=0.04),
    TensorProof("b.weight", 10, 0, dot=3.0, intended=3.0, error=0.03),
    TensorProof("norm.weight", 10, 0),
)


def verification(
    measures: Measures | None, weights: tuple[TensorProof, ...] = WEIGHTS, *, onto_original: bool = False
) -> Verification:
    return Verification(
        rows=2,
        tokens=8,
        divergence=0.002,
        trained_loss=1.0,
        merged_loss=1.01,
        weights=weights,
        measures=measures,
        onto_original=onto_original,
        best=(1, 2),
    )


def test_the_result_has_the_numbers_of_the_proof() -> None:
    found = proof_result(verification(MEASURES), "question", "answer")
    assert found.document() == {
        "rows": 2,
        "tokens": 8,
        "klDivergence": 0.002,
        "trainedLoss": 1.0,
        "mergedLoss": 1.01,
        "prompt": "question",
        "answer": "answer",
        "verdict": "Proven",
        "baseDivergence": pytest.approx(0.3),
        "noiseDivergence": pytest.approx(0.0006),
        "slope": 0.99,
        "slopeTolerance": pytest.approx(0.08),
        "survivingUpdate": pytest.approx(3.9 / 4),
        "weakestTensor": "a.weight",
        "weakestSurvival": pytest.approx(0.9),
    }


def test_a_merge_onto_the_original_weights_knows_the_adapters_loss_on_them() -> None:
    found = proof_result(verification(MEASURES, onto_original=True), "question", "answer")
    assert found.adapter_on_original_loss == MEASURES.exact_loss


def test_what_is_not_known_is_not_set() -> None:
    """The record is an older trainer's, and no tensor has an update."""
    found = proof_result(verification(None, WEIGHTS[2:]), "question", "answer").document()
    assert set(found) == {"rows", "tokens", "klDivergence", "trainedLoss", "mergedLoss", "prompt", "answer"}


def test_the_manifest_gets_projection_and_error_of_each_updated_tensor() -> None:
    found = survival(WEIGHTS)
    assert set(found) == {"a.weight", "b.weight"}
    assert found["a.weight"] == pytest.approx((0.9, 0.2))
    assert found["b.weight"] == pytest.approx((1.0, 0.1))
