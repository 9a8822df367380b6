"""A result of a later minor version is read without the values that this version does not know."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from finetune_operator.api.stages import WORK_STAGES, Stage
from finetune_operator.contract.newer import is_newer
from finetune_operator.contract.reading import parse_result
from finetune_operator.errors import MalformedDocumentError
from hypothesis import given
from hypothesis import strategies as st

from tests.support.operator import UID, make_result


def parse(document: Any, stage: Stage | None = None) -> Any:
    expected = stage or Stage(document["stage"])
    return parse_result(json.dumps(document), uid=UID, stage=expected, attempt=0)


def newer(stage: Stage) -> dict[str, Any]:
    return {**copy.deepcopy(make_result(stage)), "version": "1.9999"}


@pytest.mark.parametrize(
    ("version", "expected"),
    [
        ("1.9999", True),
        ("1.0", False),
        ("2.0", False),
        ("1.²", False),
        ("1.", False),
        (1.9, False),
        (None, False),
    ],
)
def test_only_a_later_minor_version_is_newer(version: object, *, expected: bool) -> None:
    assert is_newer({"version": version}) is expected


def test_an_unknown_verdict_of_the_evaluation_leaves_the_rest() -> None:
    document = newer(Stage.TRAIN)
    document["train"]["evaluation"]["verdict"] = "MuchImproved"
    result = parse(document)
    assert result.train.evaluation is None
    assert result.train.steps == document["train"]["steps"]


def test_an_unknown_verdict_of_the_proof_leaves_its_numbers() -> None:
    document = newer(Stage.MERGE)
    document["merge"]["verification"]["verdict"] = "ProvenTwice"
    found = parse(document).merge.verification
    assert found.verdict is None
    assert found.kl_divergence == document["merge"]["verification"]["klDivergence"]


def test_an_unknown_artifact_leaves_the_others() -> None:
    document = newer(Stage.MERGE)
    first = document["merge"]["artifacts"][0]
    document["merge"]["artifacts"] = [{**first, "kind": "Gguf"}, first, {**first, "kind": "Onnx"}]
    assert [artifact.kind for artifact in parse(document).merge.artifacts] == [first["kind"]]


def test_many_unknown_items_leave_the_known_ones() -> None:
    document = newer(Stage.TRAIN)
    rung = {"gradientCheckpointing": True, "activity": "Training"}
    document["train"]["failedRungs"] = [
        {**rung, "step": step, "microBatchSize": int(step % 3 > 0)} for step in range(1, 17)
    ]
    kept = [step for step in range(1, 17) if step % 3]
    assert [failed.step for failed in parse(document).train.failed_rungs] == kept


def test_a_batching_of_another_kind_is_left_out() -> None:
    document = newer(Stage.TRAIN)
    document["train"]["batching"] = {"kind": "Sharded", "budgetTokens": 512}
    assert parse(document).train.batching is None


def test_an_attention_of_another_backend_is_left_out() -> None:
    document = newer(Stage.TRAIN)
    document["train"]["attention"] = {"backend": "Ring", "reason": "two GPUs"}
    assert parse(document).train.attention is None


@pytest.mark.parametrize(
    "change",
    [{"outcome": "Paused"}, {"uid": 1}, {"version": "2.0"}, {"train": None}, {"train": {"device": "cpu"}}],
)
def test_what_a_result_needs_cannot_be_missed(change: dict[str, Any]) -> None:
    with pytest.raises(MalformedDocumentError):
        parse({**newer(Stage.TRAIN), **change})


def test_the_same_version_is_read_strictly() -> None:
    document = copy.deepcopy(make_result(Stage.TRAIN))
    document["train"]["evaluation"]["verdict"] = "MuchImproved"
    with pytest.raises(MalformedDocumentError, match="verdict"):
        parse(document)
    for missing in ({"evaluation": None}, {}):
        document["train"].pop("evaluation", None)
        with pytest.raises(MalformedDocumentError, match="evaluation"):
            parse({**document, "train": {**document["train"], **missing}})


@given(st.data())
def test_no_value_anywhere_crashes_the_reader(data: st.DataObject) -> None:
    stage = data.draw(st.sampled_from(WORK_STAGES))
    document = newer(stage)
    value: Any = document
    while True:
        keys = sorted(value) if isinstance(value, dict) else list(range(len(value)))
        key = data.draw(st.sampled_from(keys))
        if not isinstance(value[key], dict | list) or not value[key] or data.draw(st.booleans()):
            break
        value = value[key]
    value[key] = data.draw(
        st.none() | st.integers() | st.text(max_size=8) | st.lists(st.integers(), max_size=40)
    )
    try:
        result = parse(document, stage)
    except MalformedDocumentError:
        return
    assert result.uid == UID
