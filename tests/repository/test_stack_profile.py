"""The estimates that docs/stack-profile.md compares with published figures are those of the code."""

from __future__ import annotations

import json
import re
from typing import Any

from finetune_operator.sizing.memory.estimate import estimate
from finetune_operator.sizing.memory.shape import model_shape
from finetune_operator.sizing.memory.stack import parse_stack
from finetune_operator.sizing.memory.terms import Estimate
from finetune_operator.sizing.memory.training_plan import TrainingPlan

from tests.support.repository import ROOT

_TEXT = (ROOT / "docs" / "stack-profile.md").read_text(encoding="utf-8")
LLAMA_2_7B = model_shape({"model_type": "llama"})
LLAMA_31_8B = model_shape(
    {"model_type": "llama", "vocab_size": 128256, "intermediate_size": 14336, "num_key_value_heads": 8}
)


def _shown(stack: str) -> list[str]:
    """Return the estimates of the first table."""
    row = next(line for line in _TEXT.splitlines() if line.startswith(f"| {stack}") and "{" not in line)
    return row.strip("| ").rpartition(" | ")[2].split(", ")


def _profile(stack: str) -> tuple[dict[str, Any], list[int]]:
    row = next(line for line in _TEXT.splitlines() if line.startswith(f"| {stack} | `{{"))
    found = re.fullmatch(r"\| [^|]+ \| `(\{.*?\})`[^|]* \| ([\d, ]+) \|", row)
    assert found is not None
    return json.loads(found[1]), [int(length) for length in found[2].split(", ")]


def _of_8b(stack: str) -> list[Estimate]:
    profile, lengths = _profile(stack)
    plans = [TrainingPlan(length, rank=32) for length in lengths]
    return [estimate(LLAMA_31_8B, plan, parse_stack(profile)) for plan in plans]


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.1f}"


def test_the_estimates_for_runs_on_whole_cards_are_those_of_the_code() -> None:
    for stack in ("Hugging Face", "Unsloth"):
        assert [_gigabytes(found.device_bytes) for found in _of_8b(stack)] == _shown(stack)


def test_the_estimates_for_allocated_bytes_are_those_of_the_code() -> None:
    profile, (length,) = _profile("LitGPT")
    runs = [("None", 1), ("None", 2), ("NF4", 1)]
    found = [
        estimate(
            LLAMA_2_7B,
            TrainingPlan(
                length,
                micro_batch_size=rows,
                rank=8,
                target_modules="AttentionOnly",
                gradient_checkpointing=False,
            ),
            parse_stack({**profile, "quantization": quantization}),
        )
        for quantization, rows in runs
    ]
    assert [_gigabytes(one.peak_bytes) for one in found] == _shown("LitGPT")
