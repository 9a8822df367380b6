"""The model of a rank with a part of the weights begins as the whole model does."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from finetune_trainer.errors import Reason, StageError
from finetune_trainer.model.dequantized import dequantize_weights
from finetune_trainer.model.layout import read_base_layout
from finetune_trainer.model.load import load_quantized
from finetune_trainer.model.output_head import body_outputs, gathered, hidden_states, output_head
from finetune_trainer.stages.train.adapter import add_adapter, checkpoint_tensors
from finetune_trainer.stages.train.ranks.group import ALONE, ProcessGroup
from finetune_trainer.stages.train.ranks.sharded import load_sharded
from finetune_trainer.workspace.layout import WorkspaceLayout
from transformers import set_seed

from tests.support.ranks import lone_group
from tests.support.workspaces import prepare_small, run_spec

if TYPE_CHECKING:
    from finetune_trainer.contract.run_spec import RunSpec

IDS = torch.tensor([[5, 9, 200, 31, 7, 7], [1, 2, 3, 4, 5, 6]])
KINDS = ("qwen3_moe", "gpt_oss", "gpt2", "kimi_linear", "opt")
"""Experts in many tensors and in one, `Conv1D`, a matrix of several tensors, and a model that passes by its own body."""
LORA = {"rank": 4, "alpha": 8, "dropout": 0, "targetModules": "AllLinear", "variant": "Standard"}


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
    run = run_spec(workspace, workspace / "output", weights=weights, lora={**LORA, "variant": variant})
    _require_equal(WorkspaceLayout(workspace), run, tmp_path)


# OPT's layers do so, and its code changes none in place.
@pytest.mark.filterwarnings("ignore:.*returned a view tensor")
@pytest.mark.slow
@pytest.mark.parametrize("weights", ["Quantized", "Dequantized"])
@pytest.mark.parametrize("kind", KINDS)
def test_so_they_are_in_other_forms_of_models(kind: str, tmp_path: Path, weights: str) -> None:
    layout = prepare_small(tmp_path, kind)
    _require_equal(layout, run_spec(layout.root, tmp_path / "output", weights=weights, lora=LORA), tmp_path)


def _require_equal(layout: WorkspaceLayout, run: RunSpec, folder: Path) -> None:
    """Compare adapter, logits, and the adapter's gradients."""
    whole = load_quantized(layout.quantized_model, "cpu")
    if run.training.weights == "Dequantized":
        dequantize_weights(whole)
    set_seed(run.training.seed)
    expected = add_adapter(whole, run.training.lora, read_base_layout(layout).adaptable)
    with lone_group(folder):
        found = load_sharded(run, layout, read_base_layout(layout), ProcessGroup())
        one, other = checkpoint_tensors(found), checkpoint_tensors(expected)
        assert one.keys() == other.keys() != set()
        assert all(torch.equal(one[name], value) for name, value in other.items())
        assert torch.equal(_logits(found), _logits(expected))
        for recompute in (False, True):
            one, other = (_gradients(model, recompute=recompute) for model in (found, expected))
            assert one.keys() == other.keys()
            assert any(value.any() for value in other.values())
            for name, value in other.items():
                assert torch.equal(one[name], value), (name, recompute)


def _gradients(model: Any, *, recompute: bool) -> dict[str, torch.Tensor]:
    """Return the gradients of an adapter that changes something."""
    trained = {name: value for name, value in model.named_parameters() if value.requires_grad}
    for value in trained.values():
        torch.nn.init.normal_(value.data, std=0.02, generator=torch.Generator().manual_seed(value.numel()))
    model.train()
    model.enable_input_require_grads()
    if recompute:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    model.zero_grad()
    torch.manual_seed(3)  # GPT-2 has dropout
    hidden_states(model, IDS).square().sum().backward()
    return {name: value.grad for name, value in trained.items() if value.grad is not None}


@pytest.mark.slow
def test_routers_give_their_logits(tmp_path: Path) -> None:
    """Their loss needs them (`model.router_loss`). transformers knows models by their class, which FSDP2 changes."""
    layout = prepare_small(tmp_path, "qwen3_moe")
    run = run_spec(layout.root, tmp_path / "output", lora=LORA)
    expected = body_outputs(load_quantized(layout.quantized_model, "cpu"), IDS, output_router_logits=True)
    with lone_group(tmp_path):
        model = load_sharded(run, layout, read_base_layout(layout), ProcessGroup())
        found = body_outputs(model, IDS, output_router_logits=True)
        assert len(found.router_logits) == len(expected.router_logits) > 0
        for one, other in zip(found.router_logits, expected.router_logits, strict=True):
            assert torch.equal(one, other)


def test_an_adapter_with_the_norms_of_weights_is_refused_with_the_remedy(workspace: Path) -> None:
    layout = WorkspaceLayout(workspace)
    run = run_spec(workspace, workspace / "output", lora={**LORA, "variant": "DoRA"})
    with pytest.raises(StageError, match="found variant DoRA; use variant Standard") as caught:
        load_sharded(run, layout, read_base_layout(layout), ALONE)
    assert caught.value.reason is Reason.UNSUPPORTED_MODEL
