from __future__ import annotations

import json
from typing import Any

import pytest
from finetune_operator.api.stages import WORK_STAGES, Stage
from finetune_operator.contract.reading import parse_progress, parse_result
from finetune_operator.errors import MalformedDocumentError
from hypothesis import given
from hypothesis import strategies as st

from tests.support.operator import (
    MERGE,
    MERGE_PROVEN,
    PREPARE,
    TRAIN,
    UID,
    make_progress,
    make_result,
)

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


def parse(document: Any) -> Any:
    return parse_result(json.dumps(document), uid=UID, stage=Stage(document["stage"]), attempt=0)


def changed(stage: Stage, path: str, value: Any) -> dict[str, Any]:
    """A successful result with one member replaced."""
    document: dict[str, Any] = json.loads(json.dumps(make_result(stage)))
    *parents, last = path.split(".")
    target = document
    for name in parents:
        target = target[name]
    target[last] = value
    return document


@pytest.mark.parametrize("stage", WORK_STAGES)
def test_a_well_formed_result_is_read(stage: Stage) -> None:
    assert parse(make_result(stage)).outcome == "Succeeded"


def test_unknown_members_of_a_newer_minor_version_are_ignored() -> None:
    document = changed(Stage.TRAIN, "train.evaluation.perplexity", 3)
    assert parse({**document, "version": "1.9", "extra": {}}).train.steps == 40


@pytest.mark.parametrize(
    ("stage", "path", "value"),
    [
        (Stage.PREPARE, "version", "2.0"),
        (Stage.PREPARE, "attempt", 1),
        (Stage.PREPARE, "outcome", "Maybe"),
        (Stage.PREPARE, "prepare.dataset.rows", -1),
        (Stage.PREPARE, "prepare.dataset.rows", 2**63),
        (Stage.PREPARE, "prepare.dataset.rows", "20"),
        (Stage.PREPARE, "prepare.dataset.digest", "sha256:short"),
        (Stage.PREPARE, "prepare.dataset.rejected", {"not a reason": 1}),
        (Stage.PREPARE, "prepare.dataset.source", {"url": "x" * 257}),
        (Stage.PREPARE, "prepare.dataset.source", {"Not a name": "x"}),
        (Stage.PREPARE, "prepare.dataset.source", {f"p{number}": "x" for number in range(17)}),
        (Stage.PREPARE, "prepare.dataset.reasoningFraction", 1.5),
        (Stage.PREPARE, "prepare.dataset.capacityRatio", float("inf")),
        (Stage.PREPARE, "prepare.dataset.languages", [{"code": "en", "fraction": 0.1}] * 4),
        (Stage.PREPARE, "prepare.dataset.warnings", [{"code": "not a word", "message": "m"}]),
        (
            Stage.PREPARE,
            "prepare.dataset.warnings",
            [{"code": "FewRows", "message": "m", "value": float("nan")}],
        ),
        (Stage.PREPARE, "prepare.dataset.warnings", [{"message": "m"}]),
        (Stage.PREPARE, "prepare.model.parameters", 10**400),
        (Stage.TRAIN, "train.trainingLoss", float("nan")),
        (Stage.TRAIN, "train.trainingLoss", float("inf")),
        (Stage.TRAIN, "train.evaluation.interval", [1.0]),
        (Stage.MERGE, "merge.artifacts", []),
        (Stage.MERGE, "merge.artifacts", MERGE["artifacts"] * 2),
        (Stage.MERGE, "completionTime", "yesterday"),
        (Stage.MERGE, "completionTime", "0001-01-01T00:00:00+14:00"),
        (Stage.MERGE, "completionTime", "2026-11-24T09:00:00"),
        (Stage.MERGE, "merge.verification.answer", "x" * 513),
        (Stage.MERGE, "merge.verification.verdict", "Perhaps"),
        (Stage.MERGE, "merge.verification.slope", float("nan")),
        (Stage.MERGE, "merge.verification.survivingUpdate", "much"),
        (Stage.MERGE, "merge.verification.weakestTensor", "x" * 129),
        (Stage.MERGE, "merge.verification.warnings", [{"code": "UpdateLost", "message": "m"}] * 5),
        (Stage.MERGE, "merge.artifacts", [{**MERGE["artifacts"][0], "kind": "Base"}]),
        (Stage.MERGE, "merge.artifacts", [{**MERGE["artifacts"][0], "baseDigest": "sha256:short"}]),
    ],
)
def test_a_result_out_of_bounds_is_rejected(stage: Stage, path: str, value: Any) -> None:
    with pytest.raises(MalformedDocumentError):
        parse(changed(stage, path, value))


def test_a_merge_without_a_proof_is_read_and_so_is_one_with_all_numbers() -> None:
    """A trainer before contract 1.4 sends no verdict."""
    earlier = parse(make_result(Stage.MERGE)).merge.verification
    assert (earlier.verdict, earlier.slope, earlier.warnings) == (None, None, None)
    proven = parse({**make_result(Stage.MERGE), "merge": MERGE_PROVEN}).merge
    assert [artifact.kind for artifact in proven.artifacts] == ["Adapter", "Merged", "BaseAsTrained"]
    assert proven.artifacts[0].base_digest == proven.artifacts[2].digest
    assert (proven.verification.verdict, proven.verification.surviving_update) == ("Proven", 0.994)


def test_texts_of_a_result_are_cleaned() -> None:
    document = changed(Stage.PREPARE, "prepare.dataset.example.learned", "x\ud800\x07")
    assert parse(document).prepare.dataset.example.learned == "x? "


@given(st.sampled_from(sorted(PREPARE["dataset"])), JSON)
def test_every_accepted_value_fits_the_status(name: str, value: Any) -> None:
    document = json.dumps(changed(Stage.PREPARE, f"prepare.dataset.{name}", value))
    try:
        result = parse_result(document, uid=UID, stage=Stage.PREPARE, attempt=0)
    except MalformedDocumentError:
        return
    assert result.prepare is not None
    json.dumps(result.prepare.model_dump(mode="json", by_alias=True), allow_nan=False).encode("utf-8")


def test_an_unknown_activity_is_shown_if_it_is_a_word() -> None:
    assert make_progress(Stage.PREPARE, activity="CountingSheep").activity == "CountingSheep"
    body = make_progress(Stage.PREPARE).model_dump_json(by_alias=True).replace("Training", "<script>")
    with pytest.raises(MalformedDocumentError, match="activity"):
        parse_progress(body.encode(), uid=UID, stage=Stage.PREPARE, attempt=0)


def test_progress_without_a_number_of_steps_has_no_ratio() -> None:
    assert make_progress(Stage.PREPARE, totalSteps=None).ratio is None
    assert make_progress(Stage.PREPARE, totalSteps=0).ratio is None
    assert make_progress(Stage.PREPARE, step=50).ratio == 1.0
    assert TRAIN["steps"] == 40
