from __future__ import annotations

from typing import Any

import pytest
from finetune_cli.errors import UsageError
from finetune_cli.settings import apply_setting


def test_a_setting_creates_the_objects_on_its_way() -> None:
    spec: dict[str, Any] = {"training": {"seed": 1}}
    apply_setting(spec, "spec.training.lora.rank=8")
    apply_setting(spec, "training.learningRate=2e-4")
    assert spec == {"training": {"seed": 1, "lora": {"rank": 8}, "learningRate": 2e-4}}


def test_an_empty_value_removes_a_field() -> None:
    spec: dict[str, Any] = {"training": {"seed": 1}}
    apply_setting(spec, "training.seed=")
    assert spec == {"training": {}}


@pytest.mark.parametrize("setting", ["training.seed", "=1", "training..seed=1"])
def test_a_setting_must_have_a_path_and_a_value(setting: str) -> None:
    with pytest.raises(UsageError, match="must be PATH=VALUE"):
        apply_setting({}, setting)


def test_a_value_has_no_fields() -> None:
    with pytest.raises(UsageError, match="seed has the value 1 and no fields"):
        apply_setting({"training": {"seed": 1}}, "training.seed.more=1")
