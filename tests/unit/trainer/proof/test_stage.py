"""PREPARE with the trial of the model, as the runner starts it."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING

import torch
from finetune_trainer.proof import canaries
from finetune_trainer.proof.stage import prepare, trial
from finetune_trainer.runner import load_stage
from finetune_trainer.stages.prepare.model_proof import Findings
from finetune_trainer.telemetry.reporter import NullReporter

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import pytest
    from finetune_trainer.contract.run_spec import RunSpec


def test_the_runner_starts_prepare_with_the_trial() -> None:
    assert load_stage("prepare") is prepare


def test_a_job_on_a_healthy_model_passes_its_trial(make_run: Callable[..., RunSpec]) -> None:
    assert prepare(make_run(), NullReporter()).prepare is not None


def test_a_model_that_cannot_be_tried_small_is_not_judged(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "nobody_knows"}))
    assert "nobody_knows" in (trial(tmp_path).untried or "")


def test_a_trial_leaves_random_numbers_and_the_folder_as_they_are(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(tiny_model / "config.json", tmp_path)
    monkeypatch.setattr(canaries, "try_model", lambda _config: Findings(packing=str(torch.randn(1))))
    torch.manual_seed(1)
    expected = torch.randn(1)
    torch.manual_seed(1)
    assert trial(tmp_path).packing is not None
    assert torch.equal(torch.randn(1), expected)
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]
