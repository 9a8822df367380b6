from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from finetune_trainer.contract.run_spec import RunSpec, Training, read_run_spec
from finetune_trainer.contract.value import Value
from finetune_trainer.data.rows.rejection import RowReason
from finetune_trainer.errors import Reason, StageError
from jsonschema import Draft202012Validator
from pydantic import ValidationError, create_model

from tests.support.repository import ROOT

CONTRACT = ROOT / "contract"
RUN_SPECS = sorted((CONTRACT / "fixtures").glob("run.*.json"))
SCHEMA = json.loads((CONTRACT / "run.schema.json").read_text())


@pytest.mark.parametrize("path", RUN_SPECS, ids=lambda path: path.stem)
def test_the_trainer_reads_every_run_spec_and_writes_it_by_the_schema(path: Path) -> None:
    run = read_run_spec(path)
    written = run.model_dump(mode="json", by_alias=True, exclude_none=True)
    Draft202012Validator(SCHEMA).validate(written)
    assert RunSpec.model_validate(written) == run


def changed(tmp_path: Path, **changes: Any) -> Path:
    path = tmp_path / "run.json"
    path.write_text(json.dumps({**json.loads(RUN_SPECS[0].read_text()), **changes}))
    return path


@pytest.mark.parametrize(
    "changes",
    [{"version": "2.0"}, {"version": 1}, {"surprise": True}, {"attempt": -1}, {"device": "tpu"}],
    ids=lambda changes: next(iter(changes)),
)
def test_another_major_version_and_malformed_members_are_rejected(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    with pytest.raises(StageError) as caught:
        read_run_spec(changed(tmp_path, **changes))
    assert caught.value.reason is Reason.INVALID_RUN_SPEC


def test_a_later_minor_version_is_read(tmp_path: Path) -> None:
    assert read_run_spec(changed(tmp_path, version="1.9")).version == "1.9"


@pytest.mark.parametrize(
    ("members", "found"), [(("ranks",), {"ranks"}), (("parallelism",), {"training.parallelism"})]
)
def test_a_trainer_before_several_gpus_refuses_them(members: tuple[str, ...], found: set[str]) -> None:
    """It reads the same document without the members of contract 1.12, so it never trains on fewer GPUs than it got."""

    def older(model: type[Value], **changes: Any) -> type[Value]:
        fields: dict[str, Any] = {
            name: (field.annotation, field)
            for name, field in model.model_fields.items()
            if name not in {"ranks", "parallelism"}
        }
        return create_model("Older", __base__=Value, **{**fields, **changes})

    reader = older(RunSpec, training=(older(Training), ...))
    document = json.loads((CONTRACT / "fixtures/run.ranked.json").read_text())
    unknown = {"ranks": document.pop("ranks"), "parallelism": document["training"].pop("parallelism")}
    reader.model_validate(document)
    for name in members:
        (document if name == "ranks" else document["training"])[name] = unknown[name]
    with pytest.raises(ValidationError) as caught:
        reader.model_validate(document)
    assert {".".join(map(str, each["loc"])) for each in caught.value.errors()} == found


@pytest.mark.parametrize("text", [None, "{", "[]"])
def test_a_file_that_is_not_a_run_spec_is_rejected(tmp_path: Path, text: str | None) -> None:
    path = tmp_path / "run.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(StageError) as caught:
        read_run_spec(path)
    assert caught.value.reason is Reason.INVALID_RUN_SPEC


def test_every_row_reason_is_in_the_contract() -> None:
    listed = json.loads((CONTRACT / "reasons.json").read_text())["row"]
    assert listed.keys() == {reason.value for reason in RowReason}
