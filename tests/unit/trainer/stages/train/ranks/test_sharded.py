"""The model of a rank with a part of the weights begins as the whole model does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from finetune_trainer.errors import Reason, StageError
from finetune_trainer.model.dequantized import dequantize_weights
from finetune_trainer.model.layout import read_base_layout
from finetune_trainer.model.load import load_quantized
from finetune_trainer.model.output_head import gathered, hidden_states, output_head
from finetune_trainer.stages.train.adapter import add_adapter, checkpoint_tensors
from finetune_trainer.stages.train.ranks.group import ALONE, ProcessGroup
from finetune_trainer.stages.train.ranks.sharded import load_sharded
from finetune_trainer.workspace.layout import WorkspaceLayout
from transformers import set_seed

from tests.support.ranks import lone_group
from tests.support.workspaces import run_spec

IDS = torch.tensor([[5, 9, 200, 31, 7, 7], [1, 2, 3, 4, 5, 6]])
LORA = {"rank": 4, "alpha": 8, "dropout": 0, "targetModules": "AllLinear"}


def _logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        states = hidden_states(model.eval(), IDS)
        with gathered(output_head(model).projection):
            return output_head(model).logits(states.flatten(0, 1))


@pytest.mark.parametrize("variant", ["Standard", "RankStabilized"])
@pytest.mark.parametrize("weights", ["Quantized", "Dequantized"])
def test_adapter_and_logits_are_those_of_the_whole_model_bit_for_bit(
    workspace: Path, tmp_path: Path, weights: str, variant: str
) -> None:
    layout = WorkspaceLayout(workspace)
    run = run_spec(workspace, workspace / "output", weights=weights, lora={**LORA, "variant": variant})
    whole = load_quantized(layout.quantized_model, "cpu")
    if weights == "Dequantized":
        dequantize_weights(whole)
    set_seed(run.training.seed)
    expected = add_adapter(whole, run.training.lora, read_base_layout(layout).adaptable)
    with lone_group(tmp_path):
        found = load_sharded(run, layout, read_base_layout(layout), ProcessGroup())
        one, other = checkpoint_tensors(found), checkpoint_tensors(expected)
        assert one.keys() == other.keys() != set()
        assert all(torch.equal(one[name], value) for name, value in other.items())
        assert torch.equal(_logits(found), _logits(expected))


def test_an_adapter_with_the_norms_of_weights_is_refused_with_the_remedy(workspace: Path) -> None:
    layout = WorkspaceLayout(workspace)
    run = run_spec(workspace, workspace / "output", lora={**LORA, "variant": "DoRA"})
    with pytest.raises(StageError, match="found variant DoRA; use variant Standard") as caught:
        load_sharded(run, layout, read_base_layout(layout), ALONE)
    assert caught.value.reason is Reason.UNSUPPORTED_MODEL
