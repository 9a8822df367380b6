from __future__ import annotations

from typing import TYPE_CHECKING, get_args

import pytest
from finetune_trainer.contract.run_spec import Gate
from finetune_trainer.errors import Reason, StageError
from finetune_trainer.evaluation.gate import PASSING, require_passed

from tests.support.results import TRAIN

if TYPE_CHECKING:
    from finetune_trainer.contract.train_result import EvaluationResult

WITHHELD: dict[str, set[str]] = {
    "Report": set(),
    "WithholdIfWorse": {"Worse"},
    "WithholdUnlessImproved": {"Worse", "NoChange", "Inconclusive"},
}


def judged(verdict: str) -> EvaluationResult:
    numbers = {"verdict": verdict, "difference": 0.25, "interval": (0.125, 0.375), "rows": 40}
    return TRAIN.evaluation.model_copy(update=numbers)


@pytest.mark.parametrize("verdict", ["Improved", "NoChange", "Worse", "Inconclusive"])
@pytest.mark.parametrize("gate", WITHHELD)
def test_a_gate_withholds_exactly_its_verdicts(gate: Gate, verdict: str) -> None:
    if verdict not in WITHHELD[gate]:
        require_passed(gate, judged(verdict))
        return
    with pytest.raises(StageError) as caught:
        require_passed(gate, judged(verdict))
    assert caught.value.reason is Reason.WITHHELD_BY_GATE


def test_every_gate_of_the_contract_has_its_verdicts() -> None:
    assert set(PASSING) == set(get_args(Gate)) == set(WITHHELD)


def test_a_refusal_has_the_losses_the_interval_and_the_remedy() -> None:
    with pytest.raises(StageError) as caught:
        require_passed("WithholdIfWorse", judged("Worse"))
    message = caught.value.message
    for part in ("Improved or NoChange", "found Worse", "40 held-out rows", "+0.2500", "+0.1250 to +0.3750"):
        assert part in message
    assert "set evaluation.gate to Report" in message
    assert len(message) <= 1024
