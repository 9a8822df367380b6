from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from finetune_trainer.evaluation.recording import read_record
from finetune_trainer.model.layout import read_base_layout
from finetune_trainer.quantization.original import KeptModel
from finetune_trainer.sources.model import DirectoryModel
from finetune_trainer.stages.merge.original_loss import adapter_on_original_loss
from finetune_trainer.stages.merge.stage import merge
from finetune_trainer.telemetry.reporter import NullReporter
from finetune_trainer.workspace.layout import WorkspaceLayout, read_marker
from peft import PeftModel
from transformers import AutoModelForCausalLM

from tests.support.workspaces import SPEC_HASH, run_spec


class _Progress(NullReporter):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[int] = []

    def update(self, activity: str, step: int, total: int | None, **more: Any) -> None:
        super().update(activity, step, total, **more)
        self.seen.append(step)


@pytest.fixture
def kept(trained_llama: Path, workspace: Path) -> WorkspaceLayout:
    """Return a trained workspace in which PREPARE kept the original weights."""
    layout = WorkspaceLayout(workspace)
    prepared = read_marker(layout, "prepare", SPEC_HASH)
    assert prepared is not None
    KeptModel(DirectoryModel(trained_llama / "base"), layout.original).keep_all(
        prepared["model"]["digest"], lambda _done, _total: None
    )
    return layout


def by_peft(layout: WorkspaceLayout, base: Path) -> float:
    """The loss of the recorded rows by transformers and peft, nats per supervised token."""
    original = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model = PeftModel.from_pretrained(original, layout.adapter)
    nats, tokens = 0.0, 0
    for row in read_record(layout.verification).rows:
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([row.example.input_ids])).logits[0]
        for position in row.example.supervised:
            nats -= float(logits[position - 1].log_softmax(-1)[row.example.labels[position]])
            tokens += 1
    return nats / tokens


def test_the_loss_on_the_original_base_is_that_of_peft(kept: WorkspaceLayout, trained_llama: Path) -> None:
    progress = _Progress()
    found = adapter_on_original_loss(kept, read_base_layout(kept), progress)
    assert found.original == pytest.approx(by_peft(kept, trained_llama / "base"), rel=1e-5)
    rows = read_record(kept.verification).rows
    trained = math.fsum(row.loss.nats for row in rows) / sum(row.loss.tokens for row in rows)
    assert found.trained == pytest.approx(trained)
    assert found.original != pytest.approx(found.trained, rel=1e-5), "NF4 weights are others"
    assert progress.seen == sorted(set(progress.seen)), "each weight is read once"


@pytest.mark.parametrize("kinds", [("Adapter", "Merged", "BaseAsTrained"), ("Adapter", "BaseAsTrained")])
def test_a_job_with_the_base_as_trained_tells_the_loss_on_the_original_base(
    kept: WorkspaceLayout, trained_llama: Path, tmp_path: Path, kinds: tuple[str, ...]
) -> None:
    """In the adapter's card, and in the result and the report of the merge if there is one."""
    run = run_spec(kept.root, tmp_path / "output")
    run = run.model_copy(update={"output": run.output.model_copy(update={"artifacts": kinds})})
    verification = merge(run, NullReporter()).verification
    expected = by_peft(kept, trained_llama / "base")
    assert f"{expected:.4f} on the original weights" in (
        tmp_path / "output" / "adapter" / "README.md"
    ).read_text(encoding="utf-8")
    assert (verification is not None) == ("Merged" in kinds)
    if verification is not None:
        assert verification.adapter_on_original_loss == pytest.approx(expected, rel=1e-5)
        page = (tmp_path / "output" / "report" / "merge.html").read_text(encoding="utf-8")
        assert "adapter on the original base" in page


def test_a_workspace_of_an_older_prepare_has_no_such_loss(workspace: Path, tmp_path: Path) -> None:
    run = run_spec(workspace, tmp_path / "output")
    kinds = ("Adapter", "Merged", "BaseAsTrained")
    run = run.model_copy(update={"output": run.output.model_copy(update={"artifacts": kinds})})
    verification = merge(run, NullReporter()).verification
    assert verification is not None
    assert verification.adapter_on_original_loss is None
