"""PREPARE reports exactly the members of config.json that sizing reads, on both sides of the contract."""

from __future__ import annotations

import ast
import inspect
import json
from collections.abc import Iterator
from typing import Any

import pytest
from finetune_operator.api.stages import Stage
from finetune_operator.contract.result import Progress, parse_progress
from finetune_operator.sizing.memory import shape as shape_module
from finetune_operator.sizing.memory.families import FAMILIES
from finetune_operator.sizing.memory.shape import ShapeUnknownError, model_shape
from finetune_trainer.contract.model_config import MEMBERS, NESTED, select_config_fields
from finetune_trainer.telemetry.reporter import NullReporter, Reporter
from jsonschema import Draft202012Validator
from transformers import AutoConfig

from tests.support.repository import ROOT

CONTRACT = ROOT / "contract"
LISTED = json.loads((CONTRACT / "model_config.json").read_text())


class Recording(dict[str, Any]):
    """A config that records the members that are read."""

    def __init__(self, content: dict[str, Any]) -> None:
        super().__init__(content)
        self.read: set[str] = set()

    def get(self, key: str, default: Any = None) -> Any:
        self.read.add(key)
        return super().get(key, default)

    def __getitem__(self, key: str) -> Any:
        self.read.add(key)
        return super().__getitem__(key)

    def __contains__(self, key: object) -> bool:
        self.read.add(str(key))
        return super().__contains__(key)


def family_members() -> Iterator[str]:
    """Return every config member in a family's record: defaults, aliases, and rules that name a member."""
    for family in FAMILIES.values():
        yield from family.defaults
        yield from family.aliases.values()
        yield from (rule for rule in vars(family).values() if isinstance(rule, str) and rule.islower())


def literal_reads() -> Iterator[str]:
    """Return the names that the code reads, including those under conditions that no test config meets."""
    for node in ast.walk(ast.parse(inspect.getsource(shape_module))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.args:
            name = node.args[0]
            if (
                node.func.attr in {"value", "number", "optional", "flag"}
                and isinstance(name, ast.Constant)
                and isinstance(name.value, str)
            ):
                yield name.value


def read_by_sizing() -> set[str]:
    read = {*family_members(), *literal_reads()}
    for name in FAMILIES:
        config = Recording({"model_type": name})
        model_shape(config)
        read |= config.read
    return read


def test_both_sides_and_the_contract_list_the_same_members() -> None:
    assert list(MEMBERS) == LISTED["members"]
    assert LISTED["nested"] == NESTED


def test_every_member_that_sizing_reads_is_reported() -> None:
    read = read_by_sizing() - {NESTED}
    assert {"model_type", "hidden_size", "num_experts", "num_kv_heads", "use_bias"} <= read
    assert read <= set(MEMBERS), f"add to contract/model_config.json: {sorted(read - set(MEMBERS))}"


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_the_reported_members_give_the_same_shape_as_the_whole_config(name: str) -> None:
    """The config is the whole one of transformers. It passes through JSON and the operator's parser."""
    config = AutoConfig.for_model(name).to_dict()
    config = json.loads(json.dumps(config, default=str))
    if "num_ln_in_parallel_attn" in config:
        config |= {"new_decoder_architecture": True, "num_kv_heads": 8}
    for whole in (config, {"model_type": "wrapper", "text_config": config}):
        assert model_shape(_over_the_wire(select_config_fields(whole))) == model_shape(whole)


def _over_the_wire(config: dict[str, Any]) -> dict[str, Any]:
    document = json.loads((CONTRACT / "fixtures" / "progress.preparing.json").read_text())
    document["config"] = config
    Draft202012Validator(json.loads((CONTRACT / "progress.schema.json").read_text())).validate(document)
    progress = parse_progress(
        json.dumps(document).encode(), uid=document["uid"], stage=Stage.PREPARE, attempt=document["attempt"]
    )
    assert progress.config is not None
    return progress.config


@pytest.mark.parametrize(
    "value", [2**70, -(2**70), [1, 2], {"a": {"b": 1}}, "x" * 1000, float("nan"), float("inf"), True, 1.5, ""]
)
def test_a_size_that_is_not_a_number_reaches_sizing_and_is_rejected(value: Any) -> None:
    """Sizing uses the family's default for a missing member, so the wrong value must not get lost."""
    config = {"model_type": "llama", "hidden_size": value, "text_config": "none", "rope_scaling": {"a": 1}}
    reported = _over_the_wire(select_config_fields(config))
    assert "rope_scaling" not in reported
    with pytest.raises(ShapeUnknownError, match="hidden_size"):
        model_shape(reported)


def test_null_is_reported_as_null() -> None:
    assert select_config_fields({"model_type": "falcon", "num_ln_in_parallel_attn": None}) == {
        "model_type": "falcon",
        "num_ln_in_parallel_attn": None,
    }


@pytest.mark.parametrize(
    "config",
    [
        {f"member_{number}": number for number in range(65)},
        {"Hidden": 1},
        {"vision_config": {"hidden_size": 1}},
        {"text_config": {"rope": {"theta": 1}}},
        {"hidden_size": [1]},
    ],
    ids=["many", "name", "another nest", "deep nest", "list"],
)
def test_the_operator_reads_no_config_beyond_the_contract(config: dict[str, Any]) -> None:
    document = json.loads((CONTRACT / "fixtures" / "progress.preparing.json").read_text())
    with pytest.raises(ValueError, match="config"):
        Progress.model_validate({**document, "config": config})


def test_a_reporter_shows_the_config_as_soon_as_it_is_reported() -> None:
    reporter = Reporter(NullReporter().identity)
    try:
        assert "config" not in reporter.document()
        reporter.report_config({"model_type": "llama"})
        assert reporter.document()["config"] == {"model_type": "llama"}
        reporter.update("ProvingRows", 1, 2)
        assert reporter.document()["config"] == {"model_type": "llama"}
    finally:
        reporter.close()
