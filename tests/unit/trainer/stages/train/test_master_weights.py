"""Adapter weights are float32, multiply in the model's type, and take small steps in full."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from finetune_trainer.contract.run_spec import Lora
from finetune_trainer.model import load
from finetune_trainer.model.load import cast_model
from finetune_trainer.stages.train import master_weights
from finetune_trainer.stages.train.adapter import add_adapter, load_adapter_weights
from finetune_trainer.stages.train.batching import choose
from finetune_trainer.stages.train.dataset import open_table, training_dataset
from finetune_trainer.stages.train.master_weights import (
    MasterLinear,
    kept_values,
    row_norms,
    use_master_weights,
)
from finetune_trainer.stages.train.progress_callback import ProgressCallback
from finetune_trainer.stages.train.stage import _build_trainer, _load
from finetune_trainer.stages.train.stop_request import StopRequest
from finetune_trainer.telemetry.reporter import NullReporter
from finetune_trainer.workspace.layout import WorkspaceLayout
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

from tests.support.workspaces import run_spec

_IDS = torch.arange(24).reshape(2, 12) % 32


def model(dtype: torch.dtype) -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        attention_bias=True,
    )
    made: Any = LlamaForCausalLM(config)
    cast_model(made, dtype)
    return made


def adapted(dtype: torch.dtype = torch.bfloat16, variant: str = "Standard", dropout: float = 0) -> Any:
    """Return a model in `dtype` whose adapter has learned something."""
    base = model(dtype)
    names = [name for name, module in base.named_modules() if name.endswith(("_proj",))]
    lora = Lora.model_validate(
        {"rank": 4, "alpha": 8, "dropout": dropout, "targetModules": "AllLinear", "variant": variant}
    )
    found = add_adapter(base, lora, names)
    torch.manual_seed(1)
    for name, parameter in found.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    return found


def trained(found: Any) -> dict[str, torch.Tensor]:
    return {name: value for name, value in found.named_parameters() if value.requires_grad}


def loss(found: Any) -> torch.Tensor:
    result: torch.Tensor = found(_IDS, labels=_IDS).loss
    return result


@pytest.mark.parametrize("variant", ["Standard", "RankStabilized", "DoRA"])
def test_weights_and_gradients_are_float32_in_a_model_of_bf16(variant: str) -> None:
    found = adapted(variant=variant)
    loss(found).backward()
    weights = trained(found)
    assert {weight.dtype for weight in weights.values()} == {torch.float32}
    assert all(weight.grad is not None and weight.grad.dtype == torch.float32 for weight in weights.values())
    assert all(bool(weight.grad.any()) for weight in weights.values() if weight.grad is not None)
    assert found(_IDS).logits.dtype == torch.bfloat16


def test_a_product_takes_the_weight_rounded_to_the_type_of_its_input() -> None:
    linear = MasterLinear(8, 4, bias=False)
    states = torch.randn(3, 8).bfloat16()
    assert torch.equal(linear(states), states @ linear.weight.bfloat16().T)
    wide = torch.randn(3, 8)
    assert torch.equal(linear(wide), wide @ linear.weight.T)


@pytest.mark.parametrize(("variant", "dropout"), [("Standard", 0), ("Standard", 0.1), ("DoRA", 0)])
def test_no_activation_is_kept_in_float32_for_the_adapter(variant: str, dropout: float) -> None:
    """Float32 tensors that autograd saves are those of the model itself, its norms and its loss."""

    def saved(found: Any) -> list[tuple[int, ...]]:
        shapes: list[tuple[int, ...]] = []

        def note(tensor: torch.Tensor) -> torch.Tensor:
            if tensor.dtype == torch.float32 and tensor.dim() == 3:
                shapes.append(tuple(tensor.shape))
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            found.enable_input_require_grads()
            loss(found.train())
        return sorted(shapes)

    base = model(torch.bfloat16).requires_grad_(False)
    assert saved(adapted(variant=variant, dropout=dropout)) == saved(base)


def test_a_model_in_float32_computes_as_peft_does() -> None:
    found = adapted(torch.float32)
    plain = get_peft_model(model(torch.float32), LoraConfig(r=4, lora_alpha=8, target_modules="all-linear"))
    plain.load_state_dict(found.state_dict())
    assert torch.equal(loss(found), loss(plain))


def test_an_adapter_of_dora_that_has_learned_nothing_changes_nothing_in_bf16() -> None:
    """peft's norms in bf16 change every row by up to 0.2 % instead."""
    found = adapted(variant="DoRA")
    for name, parameter in found.named_parameters():
        if "lora_B" in name:
            torch.nn.init.zeros_(parameter)
    with torch.no_grad():
        logits = found(_IDS).logits
        with found.disable_adapter():
            assert torch.equal(logits, found(_IDS).logits)


def test_dora_computes_magnitude_times_direction() -> None:
    found = adapted(torch.float32, "DoRA")
    layer = found.base_model.model.model.layers[0].mlp.up_proj
    magnitude = layer.lora_magnitude_vector["default"]
    with torch.no_grad():
        magnitude.weight.mul_(1.5)
    weight = layer.base_layer.weight + 2 * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    expected = magnitude.weight[:, None] * weight / weight.norm(dim=1, keepdim=True)
    states = torch.randn(5, 16)
    assert torch.allclose(layer(states), states @ expected.T, atol=1e-6)


def test_dora_with_dropout_drops_inputs_of_the_whole_weight() -> None:
    """The result with an input dropped is that of the input where the dropped elements are zero and the others larger."""
    found = adapted(torch.float32, "DoRA", dropout=0.5).train()
    layer = found.base_model.model.model.layers[0].self_attn.q_proj
    with torch.no_grad():
        layer.lora_magnitude_vector["default"].weight.mul_(1.5)
    states = torch.randn(5, 16)
    torch.manual_seed(2)
    result = layer(states)
    torch.manual_seed(2)
    dropped = torch.nn.functional.dropout(states, 0.5)
    bias = layer.base_layer.bias
    plain = layer.base_layer(states)
    added = layer.eval()(dropped) - bias - (layer.base_layer(dropped) - bias)
    assert torch.allclose(result, plain + added, atol=1e-6)


def test_norms_of_rows_are_the_same_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, a, b = torch.randn(7, 5), torch.randn(2, 5), torch.randn(7, 2)
    kept = weight.clone()
    expected = (weight + 0.5 * b @ a).norm(dim=1)
    assert torch.allclose(row_norms(weight, a, b, 0.5), expected)
    monkeypatch.setattr(master_weights, "_ELEMENTS_AT_ONCE", 10)
    assert torch.allclose(row_norms(weight, a, b, 0.5), expected)
    assert torch.equal(weight, kept)


def _updates(
    prepared: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, rate: float, kind: str
) -> torch.Tensor:
    """Train 12 steps, and return by how much each trained weight changed: one vector.

    `kind` is "float32" (everything), "bf16" (the product on a GPU) or "narrow" (adapter weights in bf16, too).
    """
    shutil.copytree(prepared / "workspace", folder)
    run = run_spec(
        folder,
        folder / "output",
        maximumSteps=12,
        learningRate=rate,
        schedule={"type": "Constant", "warmupRatio": 0},
    )
    dtype = torch.float32 if kind == "float32" else torch.bfloat16
    monkeypatch.setattr(load, "compute_dtype", lambda _device: dtype)
    workspace = WorkspaceLayout(folder)
    loaded = _load(run, workspace)
    table = open_table(workspace.training_table)
    batching = choose(run.training, table.longest(), None, None)
    torch.manual_seed(1)
    for name, weight in trained(loaded.adapted).items():
        if "lora_B" in name:
            # As after some steps: otherwise A would have no gradient at first.
            torch.nn.init.normal_(weight, std=0.02)
    watch = ProgressCallback(NullReporter(), StopRequest())
    trainer = _build_trainer(run, workspace, loaded, training_dataset(table), batching, 12, watch)
    weights = trained(trainer.adapted)
    if kind == "narrow":
        for weight in weights.values():
            weight.data = weight.data.bfloat16()
    before = {name: weight.detach().float().clone() for name, weight in weights.items()}
    trainer.train()
    assert trainer.adapted.dtype == dtype
    return torch.cat([(weight.detach().float() - before[name]).flatten() for name, weight in weights.items()])


@pytest.mark.slow
@pytest.mark.parametrize("rate", [2e-5, 5e-6])
def test_small_steps_are_realized_in_full_by_a_model_in_bf16(
    prepared_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rate: float
) -> None:
    """The change of the adapter is that of a run in float32, within 2 %. Weights in bf16 lose most of it."""
    float32, bf16, narrow = (
        _updates(prepared_llama, tmp_path / kind, monkeypatch, rate, kind)
        for kind in ("float32", "bf16", "narrow")
    )

    def realized(found: torch.Tensor) -> float:
        return float(found @ float32 / (float32 @ float32))

    assert realized(bf16) == pytest.approx(1, abs=0.02)
    assert float(bf16.norm() / float32.norm()) == pytest.approx(1, abs=0.02)
    assert realized(narrow) < 0.5


def test_a_trained_weight_that_is_no_factor_is_rejected() -> None:
    whole = get_peft_model(
        model(torch.bfloat16), LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["lm_head"])
    )
    with pytest.raises(TypeError, match="lm_head"):
        use_master_weights(whole)


def test_a_checkpoint_that_an_older_trainer_wrote_in_bf16_continues_in_float32(tmp_path: Path) -> None:
    found = adapted()
    older = {
        name: tensor.bfloat16().contiguous() for name, tensor in get_peft_model_state_dict(found).items()
    }
    save_file(older, tmp_path / "adapter_model.safetensors")
    load_adapter_weights(found, tmp_path)
    assert {weight.dtype for weight in trained(found).values()} == {torch.float32}
    loaded = get_peft_model_state_dict(found)
    assert all(torch.equal(loaded[name], tensor.float()) for name, tensor in older.items())


def test_values_stay_as_they_were_before_another_library_rounds_them() -> None:
    found = adapted()
    before = {name: weight.clone() for name, weight in trained(found).items()}
    with kept_values(found):
        for weight in trained(found).values():
            weight.data = weight.data.bfloat16()
    after = trained(found)
    assert all(torch.equal(after[name], weight) for name, weight in before.items())
