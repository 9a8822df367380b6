"""TRAIN and MERGE as whole stages on small models whose matrices are packed."""

from __future__ import annotations

import os
import shutil
import signal
from typing import TYPE_CHECKING, Any

import pytest
import torch
from finetune_trainer.errors import Reason, StageError
from finetune_trainer.stages.merge.stage import merge
from finetune_trainer.stages.train.stage import train
from finetune_trainer.telemetry.reporter import NullReporter
from finetune_trainer.workspace.layout import WorkspaceLayout
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from tests.support.workspaces import prepare_small, run_spec

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.slow


class Stopping(NullReporter):
    """Asks TRAIN to stop at a step, as a node that is drained does."""

    def __init__(self, step: int) -> None:
        super().__init__()
        self._step = step

    def update(self, activity: str, step: int, total: int | None, **more: Any) -> None:
        super().update(activity, step, total, **more)
        if activity == "Training" and step == self._step:
            os.kill(os.getpid(), signal.SIGTERM)


class Measuring(NullReporter):
    """Keeps the load-balancing losses of the steps."""

    def __init__(self) -> None:
        super().__init__()
        self.balances: list[float] = []

    def measure(self, **numbers: Any) -> None:
        super().measure(**numbers)
        self.balances.extend(numbers[name] for name in numbers if name == "router_aux_loss")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a function that gives a prepared workspace of a small model of a type; each is made once."""
    made: dict[str, Path] = {}

    def workspace(kind: str) -> Path:
        if kind not in made:
            made[kind] = prepare_small(tmp_path_factory.mktemp("packed"), kind).root
        return made[kind]

    return workspace


def adapter(workspace: Path) -> dict[str, torch.Tensor]:
    return load_file(WorkspaceLayout(workspace).adapter / "adapter_model.safetensors")


@pytest.mark.parametrize("more", [{}, {"routerAuxLossCoefficient": 0.1}], ids=["plain", "balanced"])
def test_a_mixture_of_experts_that_is_interrupted_has_the_same_adapter(
    more: dict[str, Any], prepared: Callable[[str], Path], tmp_path: Path
) -> None:
    settings: dict[str, Any] = {"maximumSteps": 6, **more}
    for name in ("whole", "cut"):
        shutil.copytree(prepared("qwen3_moe"), tmp_path / name)
    reporter = Measuring()
    train(run_spec(tmp_path / "whole", tmp_path / "output", **settings), reporter)
    assert len(reporter.balances) == (6 if more else 0)
    assert all(0 < value < 10 for value in reporter.balances)
    run = run_spec(tmp_path / "cut", tmp_path / "output", **settings)
    with pytest.raises(StageError) as caught:
        train(run, Stopping(3))
    assert caught.value.reason is Reason.INTERRUPTED
    assert train(run, NullReporter()).steps == 6
    whole, cut = adapter(tmp_path / "whole"), adapter(tmp_path / "cut")
    assert whole.keys() == cut.keys()
    assert any("experts.2.up_proj.lora_B" in name for name in whole)
    for name, tensor in whole.items():
        assert torch.equal(tensor, cut[name]), name


@pytest.mark.parametrize("kind", ["qwen3_moe", "gpt_oss", "gpt2", "sarvam_moe"])
def test_a_model_with_packed_matrices_is_merged_and_proven(
    kind: str, prepared: Callable[[str], Path], tmp_path: Path
) -> None:
    shutil.copytree(prepared(kind), tmp_path / "workspace")
    run = run_spec(tmp_path / "workspace", tmp_path / "output", maximumSteps=10)
    trained = train(run, NullReporter())
    result = merge(run, NullReporter())
    assert result.verification is not None
    assert result.verification.verdict == "Proven"
    assert result.verification.merged_loss == pytest.approx(trained.evaluation.tuned_loss, abs=0.05)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "output" / "merged", dtype=torch.float32)
    logits = model(input_ids=torch.arange(3, 20)[None]).logits
    assert bool(torch.isfinite(logits).all())
