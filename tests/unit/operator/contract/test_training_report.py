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


def test_numbers_of_ranks_are_those_that_the_trainer_knows() -> None:
    report = read({**REPORT, "rankSeconds": [0.5, 0.25], "rankHostBytes": [7, 8]}).training
    assert report is not None
    assert (report.rank_seconds, report.rank_host_bytes) == ((0.5, 0.25), (7, 8))
    assert report.rank_device_bytes is None
    widest = read({**REPORT, "rankDeviceBytes": [2**63 - 1] * 64}).training
    assert widest is not None
    assert widest.rank_device_bytes == (2**63 - 1,) * 64


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
        {"rankSeconds": [0.5] * 65},
        {"rankSeconds": [0.5]},
        {"rankSeconds": [0.5, float("nan")]},
        {"rankSeconds": [0.5, None]},
        {"rankSeconds": 2},
        {"rankHostBytes": [1, -1]},
        {"rankHostBytes": list(range(1000))},
        {"rankDeviceBytes": [1, 0.5]},
    ],
    ids=str,
)
def test_numbers_out_of_bounds_are_rejected(changed: dict[str, Any]) -> None:
    with pytest.raises(MalformedDocumentError):
        read({**REPORT, **changed})
