from __future__ import annotations

import json
from typing import Any

import pytest
from finetune_operator.api.stages import Stage
from finetune_operator.contract.reading import parse_result
from finetune_operator.contract.result import Result
from finetune_operator.errors import MalformedDocumentError

from tests.support.operator import UID, make_result

COPIES: list[dict[str, Any]] = [
    {"name": "bucket", "uri": "s3://models/bot"},
    {"name": "hub", "uri": "hf://team/bot", "digest": "0" * 40},
]


def parse(document: dict[str, Any]) -> Result:
    return parse_result(json.dumps(document), uid=UID, stage=Stage.MERGE, attempt=0)


def merged(**changes: Any) -> dict[str, Any]:
    document = make_result(Stage.MERGE)
    return {**document, "merge": {**document["merge"], **changes}}


def test_publications_are_read_in_their_order() -> None:
    result = parse(merged(publications=COPIES)).merge
    assert result is not None
    assert [(each.name, each.digest) for each in result.publications or ()] == [
        ("bucket", None),
        ("hub", "0" * 40),
    ]


def test_a_result_before_contract_1_8_has_no_publications() -> None:
    result = parse(merged()).merge
    assert result is not None
    assert result.publications is None


def test_a_status_could_not_hold_two_entries_of_one_name() -> None:
    artifacts = make_result(Stage.MERGE)["merge"]["artifacts"]
    for repeated in ({"publications": [COPIES[0], COPIES[0]]}, {"artifacts": [artifacts[0], artifacts[0]]}):
        with pytest.raises(MalformedDocumentError):
            parse(merged(**repeated))
