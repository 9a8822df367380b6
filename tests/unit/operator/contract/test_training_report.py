from __future__ import annotations

import json
from typing import Any

import pytest
from finetune_operator.api.stages import Stage
from finetune_operator.contract.reading import parse_progress
from finetune_operator.contract.result import Progress
from finetune_operator.errors import MalformedDocumentError

from tests.support.operator import UID, make_progress

REPORT: dict[str, Any] = {"steps": 5, "seconds": 12.5, "tokens": 5006}


def read(report: dict[str, Any]) -> Progress:
    document = json.loads(make_progress(Stage.TRAIN).model_dump_json(by_alias=True, exclude_none=True))
    body = json.dumps({**document, "version": "1.9", "training": report}).encode()
    return parse_progress(body, uid=UID, stage=Stage.TRAIN, attempt=0)


def test_a_report_has_counts_and_what_else_is_known() -> None:
    report = read({**REPORT, "evaluationLoss": 1.5}).training
    assert report is not None
    assert (report.steps, report.evaluation_loss, report.checkpoint_time) == (5, 1.5, None)


@pytest.mark.parametrize(
    "changed",
    [
        {"seconds": -1},
        {"tokens": 2**63},
        {"tokens": "5"},
        {"evaluationLoss": float("nan")},
        {"stepSeconds": float("inf")},
        {"checkpointTime": "yesterday"},
        {"reservedBytes": -1},
    ],
    ids=str,
)
def test_numbers_out_of_bounds_are_rejected(changed: dict[str, Any]) -> None:
    with pytest.raises(MalformedDocumentError):
        read({**REPORT, **changed})
