"""The thresholds of the dataset report have the same names, defaults and bounds in all four places."""

from __future__ import annotations

import json
from typing import Any

import yaml
from finetune_operator.api.spec import Thresholds as OperatorThresholds
from finetune_trainer.contract.run_spec import Thresholds as TrainerThresholds

from tests.support.repository import ROOT

DEFAULTS = TrainerThresholds().model_dump(by_alias=True)


def crd_thresholds() -> dict[str, Any]:
    """Return the members of spec.dataset.thresholds."""
    crd = yaml.safe_load((ROOT / "crds/finetunejobs.yaml").read_text())
    schema = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
    found: dict[str, Any] = schema["properties"]["dataset"]["properties"]["thresholds"]["properties"]
    return found


def test_defaults_are_the_same_as_the_trainers() -> None:
    assert OperatorThresholds().model_dump(by_alias=True) == DEFAULTS
    assert {name: field["default"] for name, field in crd_thresholds().items()} == DEFAULTS


def test_bounds_of_the_crd_are_within_those_of_contract_and_trainer() -> None:
    """Every reader accepts the CRD's smallest and largest values."""
    contract = json.loads((ROOT / "contract/run.schema.json").read_text())["$defs"]
    members = contract["thresholds"]["properties"]
    assert members.keys() == DEFAULTS.keys()
    for name, field in crd_thresholds().items():
        member = members[name]
        bounds = contract["fraction"] if "$ref" in member else member
        lowest = "exclusiveMinimum" if field.get("exclusiveMinimum") else "minimum"
        assert (field["minimum"], field["maximum"]) == (bounds[lowest], bounds["maximum"]), name
        smallest = 1e-9 if field.get("exclusiveMinimum") else field["minimum"]
        for value in (smallest, field["maximum"]):
            TrainerThresholds.model_validate({name: value})
            OperatorThresholds.model_validate({name: value})
