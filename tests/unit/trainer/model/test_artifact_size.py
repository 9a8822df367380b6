from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from finetune_trainer.model.adapter_targets import trainable_parameters
from finetune_trainer.model.artifact_size import artifact_bytes, least_artifact_bytes
from finetune_trainer.model.layout import read_base_layout

from tests.support import workspaces

if TYPE_CHECKING:
    from pathlib import Path

    from finetune_trainer.contract.run_spec import RunSpec


def only(run: RunSpec, *artifacts: str) -> RunSpec:
    return run.model_copy(update={"output": run.output.model_copy(update={"artifacts": artifacts})})


def test_artifacts_count_with_their_files_and_a_future_adapter_with_its_parameters(tmp_path: Path) -> None:
    workspaces.write_base(tmp_path / "base", "qwen3", torch.float32)
    workspace = workspaces.prepare(tmp_path / "workspace", tmp_path / "base")
    run = workspaces.run_spec(tmp_path / "workspace", tmp_path / "out")
    layout = read_base_layout(workspace)
    report = sum(path.stat().st_size for path in workspace.report.iterdir())
    small = sum(path.stat().st_size for path in workspace.base.iterdir())
    merged = 2 * layout.parameters + small + report
    trained = 4 * trainable_parameters(layout, run.training.lora)
    adapter = trained + small + report
    assert artifact_bytes(only(run, "Merged"), workspace) == merged
    assert artifact_bytes(only(run, "Adapter"), workspace) == adapter
    assert artifact_bytes(run, workspace) == merged + adapter - report
    as_base = run.output.model_copy(update={"artifacts": ("Merged",), "dtype": "AsBase"})
    in_32_bits = artifact_bytes(run.model_copy(update={"output": as_base}), workspace)
    assert in_32_bits == merged + 2 * layout.parameters
    gpu = only(run, "Adapter").model_copy(update={"device": "cuda"})
    assert artifact_bytes(gpu, workspace) == adapter, "the weights are float32 on every device"
    workspace.adapter.mkdir(parents=True)
    (workspace.adapter / "adapter_model.safetensors").write_bytes(b"12345")
    assert artifact_bytes(only(run, "Adapter"), workspace) == 5 + small + report
    small -= workspace.base_layout.stat().st_size
    workspace.base_layout.unlink()
    assert artifact_bytes(only(run, "Adapter"), workspace) == 5 + small + report, (
        "a trained adapter needs no layout"
    )


def test_before_the_weights_are_known_two_bytes_for_each_parameter_are_certain(tmp_path: Path) -> None:
    run = workspaces.run_spec(tmp_path / "workspace", tmp_path / "out")
    assert least_artifact_bytes(run, 135_000_000) == 270_000_000
    assert least_artifact_bytes(only(run, "Adapter"), 135_000_000) == 0
