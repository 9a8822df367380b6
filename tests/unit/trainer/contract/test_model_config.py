from __future__ import annotations

import math
from typing import Any

import pytest
from finetune_trainer.contract.model_config import select_config_fields


def test_only_members_of_the_contract_are_selected_from_both_configs() -> None:
    config = {
        "model_type": "gemma3",
        "architectures": ["Gemma3"],
        "hidden_size": 8,
        "text_config": {"vocab_size": 16, "rope_theta": 1.0},
    }
    assert select_config_fields(config) == {
        "model_type": "gemma3",
        "hidden_size": 8,
        "text_config": {"vocab_size": 16},
    }


def test_a_null_is_kept_and_a_missing_member_stays_missing() -> None:
    assert select_config_fields({"head_dim": None}) == {"head_dim": None}


@pytest.mark.parametrize(
    ("value", "selected"),
    [
        (True, True),
        (2**63 - 1, 2**63 - 1),
        (2**63, str(2**63)),
        (0.5, 0.5),
        (math.inf, "inf"),
        ([1, 2], "[1, 2]"),
        ("x" * 100, "x" * 64),
    ],
)
def test_a_value_that_is_no_bounded_scalar_becomes_the_beginning_of_its_text(
    value: Any, selected: Any
) -> None:
    assert select_config_fields({"hidden_size": value}) == {"hidden_size": selected}


def test_a_text_config_that_is_no_object_is_ignored() -> None:
    assert select_config_fields({"text_config": "none"}) == {}
