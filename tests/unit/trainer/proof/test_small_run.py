"""Small jobs on mixtures of experts against references that know no packed weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from bitsandbytes.functional import dequantize_4bit
from finetune_trainer.data.masking.example import IGNORED, Example
from finetune_trainer.errors import Reason, StageError
from finetune_trainer.model.output_head import language_model
from finetune_trainer.model.packed_load import has_packed_parameters
from finetune_trainer.model.packed_weight import packed_weights
from finetune_trainer.proof.canaries import LORA
from finetune_trainer.proof.small_run import SmallRun
from finetune_trainer.quantization.dequantize import Scratch
from finetune_trainer.stages.merge.exact import QuantizedBase, WeightFiles
from finetune_trainer.stages.merge.reference import ExactReference
from finetune_trainer.stages.merge.streamed_model import StreamedModel
from finetune_trainer.stages.merge.tensor_files import TensorFiles
from finetune_trainer.stages.merge.update import read_updates
from finetune_trainer.stages.merge.weight_proof import ProvenWeights
from finetune_trainer.stages.train.loss import Objective, negative_log_likelihood
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

if TYPE_CHECKING:
    from pathlib import Path

EXPERTS = ("mixtral", "qwen3_moe", "gpt_oss", "llama4_text", "deepseek_v3")


def adapted(kind: str, folder: Path, **given: Any) -> SmallRun:
    """`given` has settings of the adapter, and members of the config."""
    lora = {name: value for name, value in given.items() if name in type(LORA).model_fields}
    folder.mkdir(exist_ok=True)
    run = SmallRun(folder, LORA.model_copy(update=lora))
    run.build(AutoConfig.for_model(kind, **{name: given[name] for name in given.keys() - lora.keys()}))
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


def test_a_layer_with_one_expert_is_trained_and_merged(tmp_path: Path) -> None:
    """It has an axis for experts all the same, unlike a `Conv1D`."""
    run = adapted("mixtral", tmp_path, num_local_experts=1, num_experts_per_tok=1)
    run.train(2, packed=False)
    assert run.compare(run.merge()).equal
    names = load_file(run.workspace.adapter / "adapter_model.safetensors")
    assert any("experts.0.w2.lora_A" in name for name in names)


@pytest.mark.parametrize("kind", ["qwen3_moe", "gpt_oss"])
def test_with_a_load_balancing_loss_the_step_is_that_of_the_unpacked_values(
    kind: str, tmp_path: Path
) -> None:
    run = adapted(kind, tmp_path)
    run.objective = Objective.of(run.adapted, 0.5)
    reference = unpacked(run, tmp_path)
    run.train(4, packed=False)
    (one, *_) = run.step(packed=False).passes
    with torch.no_grad(), run.adapted.disable_adapter():
        loss, balance = run.objective.parts(run.adapted, one)
        known, own = run.objective.parts(reference, one)
    assert balance is not None
    assert own is not None
    assert float(loss) == pytest.approx(float(known), rel=1e-5)
    assert float(balance) == pytest.approx(float(own), rel=1e-5)
    assert run.compare(run.merge()).equal


def test_a_load_balancing_loss_changes_what_is_learned(tmp_path: Path) -> None:
    """Routers are not trained, but adapters change what they get."""
    balances = {}
    for coefficient in (None, 1.0):
        run = adapted("qwen3_moe", tmp_path / str(coefficient))
        run.objective = Objective.of(run.adapted, coefficient)
        run.train(4, packed=False)
        with torch.no_grad():
            _, found = Objective.of(run.adapted, 1.0).parts(run.adapted, run.step(packed=False).passes[0])
        assert found is not None
        balances[coefficient] = float(found)
        assert not [
            name for name, one in run.adapted.named_parameters() if one.requires_grad and "gate." in name
        ]
    assert balances[1.0] < balances[None]


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


PLACED = ("exaone", "sarvam_moe", "hrm_text", "kimi_linear", "lara_mini", "nemotron_h", "olmo_hybrid")
"""Models whose files hold linear layers under other names, several in one tensor, or a convolution in three."""


@pytest.mark.slow
@pytest.mark.parametrize("kind", PLACED)
def test_a_model_whose_files_hold_layers_in_another_way_is_merged_exactly(kind: str, tmp_path: Path) -> None:
    run = adapted(kind, tmp_path)
    run.train(4, packed=False)
    merged = run.merge()
    compared = run.compare(merged)
    assert compared.difference < 1e-4
    assert compared.effect > 0.05
    (base,), (written,) = ((tmp_path / name).glob("*.safetensors") for name in ("base", "merged"))
    before, after = load_file(base), load_file(written)
    assert {name: tensor.shape for name, tensor in before.items()} == {
        name: tensor.shape for name, tensor in after.items()
    }


@pytest.mark.parametrize("variant", ["RankStabilized", "DoRA"])
def test_layers_in_one_tensor_may_have_any_variant(variant: str, tmp_path: Path) -> None:
    run = adapted("sarvam_moe", tmp_path, variant=variant)
    run.train(4, packed=False)
    compared = run.compare(run.merge())
    assert compared.difference < 1e-3
    assert compared.effect > 0.05


def test_a_layer_has_the_rows_of_its_tensor_bit_for_bit(tmp_path: Path) -> None:
    run = adapted("sarvam_moe", tmp_path)
    attention = language_model(run.adapted).model.layers[1].self_attn
    layers = [getattr(attention, name).base_layer.weight for name in ("q_proj", "k_proj", "v_proj")]
    loaded = torch.cat([dequantize_4bit(layer.data, layer.quant_state) for layer in layers])
    with WeightFiles(run.workspace.quantized_model, [file.name for file in run.layout.files]) as files:
        name = "model.layers.1.attention.query_key_value.weight"
        whole = QuantizedBase(files).read(name, tuple(loaded.shape), 0, loaded.numel(), Scratch())
        assert torch.equal(loaded.flatten(), torch.from_numpy(whole.copy()))


@pytest.mark.parametrize("kind", ["exaone", "sarvam_moe", "kimi_linear"])
def test_the_proof_of_a_merge_reads_layers_where_the_files_hold_them(kind: str, tmp_path: Path) -> None:
    run = adapted(kind, tmp_path)
    run.train(2, packed=False)
    run.compare(run.merge())
    layout, folder = run.layout, tmp_path / "merged"
    updates = read_updates(run.workspace.adapter, layout)
    ids = run.probe()[0].tolist()
    example = Example(ids, [IGNORED, *ids[1:]], 0)
    names = [file.name for file in layout.files]
    with (
        WeightFiles(run.workspace.quantized_model, names) as base,
        TensorFiles(run.workspace.quantized_model) as copies,
        TensorFiles(folder) as files,
    ):
        proven = ProvenWeights(files, ExactReference(layout, updates, QuantizedBase(base), copies))
        written, exact, _ = StreamedModel(folder, files).score([example], [[1, 5, 9]], proven)
        proofs = proven.finish()
    with torch.no_grad():
        logits = run.adapted(input_ids=run.probe(), use_cache=False).logits[0, [0, 4, 8]]
    assert float((exact.logits - logits).abs().max()) < 1e-3 * float(logits.abs().max())
    assert float((written.logits - exact.logits).abs().max()) < 1e-3 * float(logits.abs().max())
    assert [proof.name for proof in proofs if proof.foreign] == []
    assert {proof.name for proof in proofs} == {
        tensor.name for file in layout.files for tensor in file.tensors
    }


def test_a_dense_model_is_loaded_by_transformers() -> None:
    assert not has_packed_parameters(AutoConfig.for_model("llama", num_hidden_layers=1))
