"""PREPARE reports exactly the members of config.json that sizing reads, on both sides of the contract."""

from __future__ import annotations

import ast
import inspect
import json
from collections.abc import Iterator
from typing import Any

import pytest
from finetune_operator.api.stages import Stage
from finetune_operator.contract.reading import parse_progress
from finetune_operator.contract.refusals import QUANTIZED_MEMBERS
from finetune_operator.contract.result import Progress
from finetune_operator.sizing.memory import layer_kinds, shape
from finetune_operator.sizing.memory.families import FAMILIES
from finetune_operator.sizing.memory.shape import FamilyUnknownError, ShapeUnknownError, model_shape
from finetune_trainer.contract.model_config import (
    CLOSED_FORMS,
    COUNTS,
    KINDS,
    MEMBERS,
    NESTED,
    SPELLINGS,
    has_formula,
    select_config_fields,
)
from finetune_trainer.telemetry.reporter import NullReporter, Reporter
from jsonschema import Draft202012Validator
from transformers import AutoConfig

from tests.support.repository import ROOT
from tests.support.results import full_config

CONTRACT = ROOT / "contract"
NEEDED: dict[str, dict[str, Any]] = {
    "granitemoehybrid": {"num_local_experts": 0, "layer_types": ["attention"] * 32}
}
WHOLE_CONFIG = {NESTED, "architectures", "auto_map", "is_encoder_decoder", *QUANTIZED_MEMBERS}
"""Members that a refusal reads. The trainer refuses such a model before it reports any member."""
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
        yield from (*family.aliases.values(), *family.overrides.values())
        yield from (name for name in (family.activation[0], *family.dropouts) if name)
        rules = (family.parallel, family.qk_normed, family.qkv_bias, family.output_bias, family.mlp_bias)
        yield from (rule for rule in (*rules, family.inner, family.window_flag) if isinstance(rule, str))


def literal_reads() -> Iterator[str]:
    """Return the names that the code reads, including those under conditions that no test config meets."""
    sources = (inspect.getsource(module) for module in (shape, layer_kinds))
    for node in (node for source in sources for node in ast.walk(ast.parse(source))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.args:
            name = node.args[0]
            if (
                node.func.attr in {"value", "number", "optional", "flag", "real", "text"}
                and isinstance(name, ast.Constant)
                and isinstance(name.value, str)
            ):
                yield name.value


def read_by_sizing() -> set[str]:
    read = {*family_members(), *literal_reads()}
    for name in FAMILIES:
        config = Recording({"model_type": name, **NEEDED.get(name, {})})
        model_shape(config)
        read |= config.read
    return read - WHOLE_CONFIG - SPELLINGS.keys() - set(SPELLINGS.values())


def test_both_sides_and_the_contract_list_the_same_members() -> None:
    assert list(MEMBERS) == LISTED["members"]
    assert LISTED["nested"] == NESTED
    assert (list(KINDS), list(COUNTS), dict(SPELLINGS)) == (
        LISTED["kinds"],
        LISTED["counts"],
        LISTED["spellings"],
    )
    assert {*KINDS, *COUNTS, *SPELLINGS} <= set(MEMBERS)


def test_both_sides_and_the_contract_list_the_same_closed_forms() -> None:
    assert set(LISTED["closedForms"]) == set(CLOSED_FORMS) == set(FAMILIES)


GRANITE_4 = {
    "model_type": "granitemoehybrid",
    "num_hidden_layers": 4,
    "num_local_experts": 0,
    "layer_types": ["attention"] * 4,
}


@pytest.mark.parametrize(
    ("config", "known"),
    [
        ({"model_type": "llama"}, True),
        (GRANITE_4, True),
        ({**GRANITE_4, "num_local_experts": 64}, False),
        ({**GRANITE_4, "layer_types": ["mamba", "mamba", "attention", "mamba"]}, False),
        (
            {
                "model_type": "granitemoehybrid",
                "num_local_experts": 0,
                "num_hidden_layers": 2,
                "layers_block_type": ["mamba", "attention"],
            },
            False,
        ),
        ({"model_type": "qwen3_moe", "num_experts": 128}, False),
        ({"model_type": "lfm2", "num_hidden_layers": 2, "layer_types": ["conv", "full_attention"]}, True),
        ({"model_type": "llama", "num_experts": 1}, True),
    ],
)
def test_both_sides_agree_on_which_models_only_a_trace_can_size(config: dict[str, Any], known: bool) -> None:  # noqa: FBT001
    assert has_formula(config) is known
    if known:
        model_shape(select_config_fields(config))
        return
    with pytest.raises(FamilyUnknownError):
        model_shape(select_config_fields(config))


def test_every_member_that_sizing_reads_is_reported() -> None:
    read = read_by_sizing()
    assert {"model_type", "hidden_size", "layer_types", "block_ff_dim", "use_bias", "clip_qkv"} <= read
    assert read <= set(MEMBERS), f"add to contract/model_config.json: {sorted(read - set(MEMBERS))}"


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_the_reported_members_give_the_same_shape_as_the_whole_config(name: str) -> None:
    """The config is the whole one of transformers. It passes through JSON and the operator's parser."""
    config = AutoConfig.for_model(name, **NEEDED.get(name, {})).to_dict()
    config = json.loads(json.dumps(config, default=str))
    assert model_shape(_over_the_wire(select_config_fields(config))) == model_shape(config)


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_no_familys_config_takes_more_room_than_the_largest_result_has(name: str) -> None:
    """The tests of the termination message use this size. A config that does not fit is dropped."""
    config = AutoConfig.for_model(name, **NEEDED.get(name, {})).to_dict()
    reported = select_config_fields(json.loads(json.dumps(config, default=str)))
    assert len(json.dumps(reported)) <= len(json.dumps(full_config()))


@pytest.mark.parametrize(
    "changes",
    [
        {"layer_types": ["conv", "conv", "full_attention"] * 4},
        {"full_attn_idxs": [1, 4, 7, 10], "layer_types": None},
        {"conv_L_cache": 5, "conv_bias": True},
        {"block_ff_dim": 300, "tie_embedding": False},
    ],
)
def test_a_list_and_an_odd_name_reach_sizing(changes: dict[str, Any]) -> None:
    """A list becomes a text or a number, and names of documents are in lower case."""
    config = {"model_type": "lfm2", "num_hidden_layers": 12, **changes}
    shape = model_shape(config)
    assert shape != model_shape({"model_type": "lfm2", "num_hidden_layers": 12, "layer_types": ["conv"] * 12})
    assert model_shape(_over_the_wire(select_config_fields(config))) == shape


@pytest.mark.parametrize("value", [["a" * 40, "b" * 40], [1], [["conv"]], "conv", {"conv": 1}])
def test_a_list_of_kinds_that_is_none_is_rejected_by_sizing(value: Any) -> None:
    config = {"model_type": "lfm2", "num_hidden_layers": 2, "layer_types": value}
    with pytest.raises(ShapeUnknownError, match="layer_types"):
        model_shape(_over_the_wire(select_config_fields(config)))


def test_the_text_part_of_a_wrapper_is_reported_although_no_wrapper_is_tuned() -> None:
    reported = _over_the_wire(select_config_fields({"model_type": "w", "text_config": {"hidden_size": 8}}))
    assert reported == {"model_type": "w", "text_config": {"hidden_size": 8}}


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
    assert select_config_fields({"model_type": "olmo", "clip_qkv": None}) == {
        "model_type": "olmo",
        "clip_qkv": None,
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
