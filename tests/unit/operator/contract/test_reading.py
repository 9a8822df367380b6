from __future__ import annotations

import json
from typing import Any

import pytest
from finetune_operator.api.stages import Stage
from finetune_operator.contract.reading import MAXIMUM_PROGRESS_BYTES, parse_progress, parse_result
from finetune_operator.errors import MalformedDocumentError
from hypothesis import given
from hypothesis import strategies as st

from tests.support.operator import UID, make_failure, make_progress, make_result


def parse(document: Any) -> Any:
    return parse_result(json.dumps(document), uid=UID, stage=Stage(document["stage"]), attempt=0)


def test_a_success_needs_its_stages_section_and_a_failure_its_reason() -> None:
    without = make_result(Stage.TRAIN)
    del without["train"]
    with pytest.raises(MalformedDocumentError, match="train"):
        parse(without)
    failure = make_failure(Stage.TRAIN, "NonFiniteLoss")
    del failure["reason"]
    with pytest.raises(MalformedDocumentError, match="reason"):
        parse(failure)


@given(st.text() | st.binary().map(lambda body: body.decode("latin-1")))
def test_no_text_crashes_the_parser(text: str) -> None:
    with pytest.raises(MalformedDocumentError):
        parse_result(text, uid=UID, stage=Stage.PREPARE, attempt=0)


def test_progress_of_another_run_is_rejected() -> None:
    body = make_progress(Stage.TRAIN).model_dump_json(by_alias=True).encode()
    assert parse_progress(body, uid=UID, stage=Stage.TRAIN, attempt=0).ratio == 5 / 40
    for uid, stage, attempt in (("x", Stage.TRAIN, 0), (UID, Stage.MERGE, 0), (UID, Stage.TRAIN, 1)):
        with pytest.raises(MalformedDocumentError):
            parse_progress(body, uid=uid, stage=stage, attempt=attempt)


def test_oversized_progress_is_rejected() -> None:
    with pytest.raises(MalformedDocumentError, match="bytes"):
        parse_progress(b" " * (MAXIMUM_PROGRESS_BYTES + 1), uid=UID, stage=Stage.TRAIN, attempt=0)
