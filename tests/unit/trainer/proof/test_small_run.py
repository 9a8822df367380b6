"""Small jobs on mixtures of experts against references that know no packed weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from finetune_trainer.errors import Reason, StageError
from finetune_trainer.model.output_head import language_model
from finetune_trainer.model.packed_load import has_packed_parameters
from finetune_trainer.model.packed_weight import packed_weights
from finetune_trainer.proof.canaries import LORA
from finetune_trainer.proof.small_run import SmallRun
from finetune_trainer.stages.train.loss import negative_log_likelihood
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

if TYPE_CHECKING:
    from pathlib import Path

EXPERTS = ("mixtral", "qwen3_moe", "gpt_oss", "llama4_text", "deepseek_v3")


def adapted(kind: str, folder: Path, **lora: Any) -> SmallRun:
    run = SmallRun(folder, LORA.model_copy(update=lora))
    run.build(AutoConfig.for_model(kind))
    run.prepare()
    run.adapt()
    return run


def unpacked(run: SmallRun, folder: Path) -> Any:
    """Return the base in 32 bits with the values that the 4 bits have."""
    reference: Any = AutoModelForCausalLM.from_pretrained(
        folder / "base", dtype=torch.float32, experts_implementation="eager"
    )
    trained = language_model(run.adapted)
    with torch.no_grad():
        for name, weight in packed_weights(trained).items():
            values = torch.stack([weight.values(e, torch.float32) for e in range(len(weight))])
            reference.get_parameter(name).copy_(values.reshape(weight.shape))
        for name, parameter in reference.named_parameters():
            if name in packed_weights(trained):
                continue
            path, _, own = name.rpartition(".")
            module = trained.get_submodule(path)
            layer = getattr(module, "base_layer", module)
            held = getattr(layer, own)
            if hasattr(held, "quant_state"):
                from bitsandbytes.functional import dequantize_4bit  # noqa: PLC0415 -- one use

                held = dequantize_4bit(held.data, held.quant_state)
            parameter.copy_(held)
    return reference.eval()


@pytest.mark.parametrize("kind", EXPERTS)
def test_the_loss_of_experts_in_4_bits_is_that_of_their_values(kind: str, tmp_path: Path) -> None:
    """Also after training, while the adapter is off."""
    run = adapted(kind, tmp_path)
    reference = unpacked(run, tmp_path)
    run.train(1, packed=False)
    step = run.step(packed=False)
    for one in step.passes:
        with torch.no_grad(), run.adapted.disable_adapter():
            mine = negative_log_likelihood(run.adapted, one)
            theirs = negative_log_likelihood(reference, one)
        assert float(mine) == pytest.approx(float(theirs), rel=1e-5)


@pytest.mark.parametrize("kind", EXPERTS)
def test_a_trained_mixture_of_experts_is_merged_exactly(kind: str, tmp_path: Path) -> None:
    run = adapted(kind, tmp_path)
    run.train(4, packed=False)
    compared = run.compare(run.merge())
    assert compared.difference < 1e-4
    assert compared.effect > 0.05


def test_magnitudes_of_experts_are_merged_exactly(tmp_path: Path) -> None:
    run = adapted("qwen3_moe", tmp_path, variant="DoRA")
    run.train(4, packed=False)
    compared = run.compare(run.merge())
    assert compared.difference < 1e-3
    assert compared.effect > 0.05


def test_an_adapter_on_attention_alone_leaves_the_experts(tmp_path: Path) -> None:
    run = adapted("qwen3_moe", tmp_path, target_modules="AttentionOnly")
    run.train(4, packed=False)
    assert run.compare(run.merge()).equal
    names = load_file(run.workspace.adapter / "adapter_model.safetensors")
    assert names
    assert all("self_attn" in name for name in names)


@pytest.mark.parametrize("kind", ["qwen3_moe", "gpt_oss"])
def test_each_part_of_an_expert_has_factors_by_its_name_in_the_files(kind: str, tmp_path: Path) -> None:
    run = adapted(kind, tmp_path)
    run.train(1, packed=False)
    run.merge()
    tensors = load_file(run.workspace.adapter / "adapter_model.safetensors")
    prefix = "base_model.model.model.layers.0.mlp.experts"
    if kind == "gpt_oss":
        assert tensors[f"{prefix}.gate_up_proj.lora_A.weight"].shape == (4, 4, 64)
        assert tensors[f"{prefix}.gate_up_proj.lora_B.weight"].shape == (4, 256, 4)
    else:
        assert tensors[f"{prefix}.3.gate_proj.lora_A.weight"].shape == (4, 64)
        assert tensors[f"{prefix}.3.down_proj.lora_B.weight"].shape == (64, 4)
    assert not [name for name in tensors if ".gate." in name or "router" in name]


def test_a_checkpoint_without_an_expert_is_not_loaded(tmp_path: Path) -> None:
    run = adapted("qwen3_moe", tmp_path)
    (path,) = run.workspace.quantized_model.glob("*.safetensors")
    tensors = load_file(path)
    del tensors["model.layers.1.mlp.experts.2.up_proj.weight"]
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(StageError, match=r"experts\.2\.up_proj") as caught:
        run.adapt()
    assert caught.value.reason is Reason.QUANTIZATION_MISMATCH


def test_a_dense_model_is_loaded_by_transformers() -> None:
    assert not has_packed_parameters(AutoConfig.for_model("llama", num_hidden_layers=1))
