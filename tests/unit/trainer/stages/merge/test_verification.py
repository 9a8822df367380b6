from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from finetune_trainer.contract.result import EndToken
from finetune_trainer.errors import Reason, StageError
from finetune_trainer.stages.merge.verification import (
    Verification,
    free_memory,
    kl_divergence,
    require_agreement,
    require_stops,
)
from transformers import GenerationConfig


def test_the_divergence_follows_the_formula_and_is_zero_if_equal() -> None:
    trained = torch.tensor([[0.5, 0.5], [0.9, 0.1]]).log()
    merged = torch.tensor([[0.5, 0.5], [0.5, 0.5]]).log()
    found = kl_divergence(trained, merged).tolist()
    assert found[0] == pytest.approx(0.0, abs=1e-7)
    assert found[1] == pytest.approx(0.9 * math.log(1.8) + 0.1 * math.log(0.2), abs=1e-6)


@pytest.mark.parametrize(
    ("divergence", "merged_loss", "agrees"),
    [
        (0.005, 0.501, True),
        (0.021, 0.5, False),
        (0.005, 0.52, False),
        (0.005, 0.48, False),
        (float("nan"), 0.5, False),
        (0.005, float("nan"), False),
    ],
)
def test_the_gate_rejects_numbers_out_of_bounds(divergence: float, merged_loss: float, agrees: bool) -> None:  # noqa: FBT001 -- a table of cases
    assert (Verification(4, 20, divergence, 0.5, merged_loss).fault() is None) is agrees


@pytest.mark.parametrize(
    ("configured", "missing"), [(None, "2"), (1, "2"), ([1, 3], "2"), ([1, 2], None), (2, None)]
)
def test_an_artifact_must_stop_at_every_learned_end(configured: Any, missing: str | None) -> None:
    model = SimpleNamespace(generation_config=GenerationConfig(eos_token_id=configured))
    if missing is None:
        require_stops(model, [EndToken(id=2, text="<|im_end|>")])
        return
    with pytest.raises(StageError, match=r"found none of <\|im_end\|> \(2\)") as caught:
        require_stops(model, [EndToken(id=2, text="<|im_end|>")])
    assert caught.value.reason is Reason.ARTIFACT_VERIFICATION_FAILED


def test_different_models_are_an_error_with_the_numbers() -> None:
    require_agreement(Verification(4, 20, 0.001, 0.5, 0.5))
    with pytest.raises(StageError, match=r"0\.3000 over 20 tokens; nothing was published") as caught:
        require_agreement(Verification(4, 20, 0.3, 0.5, 0.5))
    assert caught.value.reason is Reason.ARTIFACT_VERIFICATION_FAILED


@pytest.mark.parametrize(
    ("limit", "used", "free"),
    [("max", "5", 3 * 1024), ("2048", "1024", 1024), ("1024", "4096", 0), (None, None, 3 * 1024)],
)
def test_free_memory_is_limited_by_the_node_and_the_cgroup(
    tmp_path: Path, limit: str | None, used: str | None, free: int
) -> None:
    (tmp_path / "meminfo").write_text("MemTotal: 9 kB\nMemAvailable: 3 kB\n")
    if limit is not None and used is not None:
        (tmp_path / "memory.max").write_text(f"{limit}\n")
        (tmp_path / "memory.current").write_text(f"{used}\n")
    assert free_memory(tmp_path, tmp_path / "meminfo") == free
