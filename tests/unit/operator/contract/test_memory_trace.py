"""The operator reads a memory trace within the bounds of the contract."""

from __future__ import annotations

import json
from typing import Any

import pytest
from finetune_operator.contract.memory_trace import MemoryTrace
from jsonschema import Draft202012Validator
from pydantic import ValidationError

from tests.support.memory_traces import memory_trace
from tests.support.repository import ROOT


def schema() -> Draft202012Validator:
    document = json.loads((ROOT / "contract" / "result.schema.json").read_text())
    return Draft202012Validator({"$ref": "#/$defs/memoryTrace", "$defs": document["$defs"]})


def test_parameters_are_those_of_all_groups() -> None:
    experts = {"modules": 1, "parameters": 7, "bytes": 14}
    found = MemoryTrace.model_validate(memory_trace(1, experts=experts))
    assert found.parameters == (1 << 30) + (1 << 26) + 7


@pytest.mark.parametrize(
    "changes",
    [
        {"rungs": []},
        {"rungs": [[1, 1, 0, 1, 1, 1, 1]]},
        {"rungs": [[1, 1, 0, 1, 1, 1, 1, 1]] * 49},
        {"rungs": [[1, 1, 0, 1, 1, 1, 1, -1]]},
        {"lengths": [[1, 1, 1, 1, 1, 1]] * 9},
        {"optimizers": {}},
        {"optimizers": {"adam w": 1}},
        {"length": 0},
        {"quantized": {"modules": 1}},
    ],
)
def test_both_the_schema_and_the_operator_reject_a_trace_beyond_the_bounds(changes: dict[str, Any]) -> None:
    document = memory_trace(1, **changes)
    assert not schema().is_valid(document)
    with pytest.raises(ValidationError):
        MemoryTrace.model_validate(document)


def test_both_accept_what_the_largest_trace_has() -> None:
    rung = [1 << 20, 1, 1, *[1 << 40] * 5]
    group = {"modules": 1, "parameters": 1 << 60, "bytes": 1 << 60}
    document = memory_trace(
        1, rungs=[rung] * 48, lengths=[[64, *[1 << 40] * 5]] * 8, other=group, experts=group
    )
    assert schema().is_valid(document)
    read = MemoryTrace.model_validate(document)
    assert len(read.model_dump_json(by_alias=True)) < 16_384
    assert MemoryTrace.model_validate_json(read.model_dump_json(by_alias=True)) == read
