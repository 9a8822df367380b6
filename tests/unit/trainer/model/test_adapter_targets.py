from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from finetune_trainer.errors import Reason, StageError
from finetune_trainer.model.adapter_targets import reject_variant, trainable_parameters
from finetune_trainer.model.layout import read_base_layout
from finetune_trainer.model.load import load_quantized
from finetune_trainer.stages.train.settings import lora_config
from peft import get_peft_model

from tests.support import workspaces

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("variant", "targets"), [("Standard", "AllLinear"), ("DoRA", "AllLinear"), ("Standard", "AttentionOnly")]
)
def test_the_parameter_count_is_the_same_as_in_peft(tmp_path: Path, variant: str, targets: str) -> None:
    workspaces.write_base(tmp_path / "base", "llama", torch.bfloat16)
    workspace = workspaces.prepare(tmp_path / "workspace", tmp_path / "base")
    run = workspaces.run_spec(tmp_path / "workspace", tmp_path / "out")
    lora = run.training.lora.model_copy(update={"variant": variant, "target_modules": targets})
    layout = read_base_layout(workspace)
    model = get_peft_model(
        load_quantized(workspace.quantized_model, "cpu"), lora_config(lora, layout.quantized)
    )
    assert trainable_parameters(layout, lora) == model.get_nb_trainable_parameters()[0]


def test_magnitudes_on_matrices_with_a_row_for_each_input_are_refused(tmp_path: Path) -> None:
    plain = workspaces.run_spec(tmp_path, tmp_path).training.lora
    dora = plain.model_copy(update={"variant": "DoRA"})
    experts = ["model.layers.0.mlp.experts.gate_up_proj"]
    reject_variant(plain, experts)
    reject_variant(dora, [])
    reject_variant(dora.model_copy(update={"target_modules": "AttentionOnly"}), experts)
    with pytest.raises(StageError, match="row for each input") as caught:
        reject_variant(dora, experts)
    assert caught.value.reason is Reason.UNSUPPORTED_MODEL
