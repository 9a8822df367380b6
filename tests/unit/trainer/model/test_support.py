"""Unsupported base models fail with a reason and the name of the fault, before any weight is fetched."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import torch
from finetune_trainer.errors import Reason, StageError
from finetune_trainer.model.load import load_quantized
from finetune_trainer.proof.small_run import small_model
from finetune_trainer.quantization.quantize import quantize_model
from finetune_trainer.sources.model import DirectoryModel
from finetune_trainer.telemetry.reporter import NullReporter
from finetune_trainer.workspace.layout import WorkspaceLayout
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    FalconConfig,
    MllamaConfig,
    T5Config,
)

from tests.support.architectures import tiny
from tests.support.tiny_models import write_tiny_model

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"


def failure(model: Path, workspace: Path) -> tuple[StageError, int]:
    """Return the error and the number of weight files that were fetched before it."""
    fetched: list[str] = []

    class CountingModel(DirectoryModel):
        def fetch(self, name: str, on_bytes: Callable[[int, int | None], None]) -> Path:
            fetched.append(name)
            return super().fetch(name, on_bytes)

    def attempt() -> None:
        quantize_model(CountingModel(model), WorkspaceLayout(workspace), NullReporter())

    with pytest.raises(StageError) as caught:
        attempt()
    assert not (workspace / "model").exists()
    return caught.value, len(fetched)


def change_config(model: Path, **changes: Any) -> None:
    path = model / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def config(**changes: Any) -> Callable[[Path], None]:
    return lambda model: change_config(model, **changes)


def text(name: str, content: str) -> Callable[[Path], None]:
    def write(model: Path) -> None:
        (model / name).write_text(content)

    return write


def pickles(model: Path) -> None:
    (model / SINGLE).unlink()
    (model / "pytorch_model.bin").write_bytes(b"\x80\x04")


def gguf(model: Path) -> None:
    (model / SINGLE).unlink()
    (model / "model-Q4_K_M.gguf").write_bytes(b"GGUF")


UNSUPPORTED: list[tuple[str, Callable[[Path], None], str]] = [
    ("GPTQ", config(quantization_config={"quant_method": "gptq", "bits": 4}), "gptq"),
    ("AWQ", config(quantization_config={"quant_method": "awq"}), "awq"),
    ("bitsandbytes", config(quantization_config={"load_in_4bit": True}), "quantization_config"),
    ("fp8", config(quantization_config={"quant_method": "fp8"}), "fp8"),
    ("compressed-tensors", config(compression_config={"format": "pack-quantized"}), "compression_config"),
    ("nested", config(text_config={"quantization_config": {"quant_method": "hqq"}}), "hqq"),
    ("AutoGPTQ's file", text("quantize_config.json", "{}"), "quantize_config.json"),
    ("ModelOpt's file", text("hf_quant_config.json", "{}"), "hf_quant_config.json"),
    (
        "remote code",
        config(model_type="nobody_knows", auto_map={"AutoModelForCausalLM": "modeling.Model"}),
        "auto_map",
    ),
    ("unknown type", config(model_type="nobody_knows"), "nobody_knows"),
    ("no causal model", config(model_type="vit"), "vit"),
    ("vision", config(vision_config={"hidden_size": 8}), "vision_config"),
    ("audio", config(audio_encoder={"hidden_size": 8}), "audio_encoder"),
    ("encoder-decoder", config(is_encoder_decoder=True), "encoder-decoder"),
    (
        "classifier",
        config(architectures=["LlamaForSequenceClassification"]),
        "LlamaForSequenceClassification",
    ),
    ("pickles", pickles, "pickle"),
    ("GGUF", gguf, "GGUF"),
]


@pytest.mark.parametrize(
    ("change", "said"), [case[1:] for case in UNSUPPORTED], ids=[c[0] for c in UNSUPPORTED]
)
def test_unsupported_models_are_rejected_before_weights_are_fetched(
    tmp_path: Path, change: Callable[[Path], None], said: str
) -> None:
    model = write_tiny_model(tmp_path / "base")
    change(model)
    error, fetched = failure(model, tmp_path / "workspace")
    assert (error.reason, fetched) == (Reason.UNSUPPORTED_MODEL, 0)
    assert said in error.message


SMALL: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
}


@pytest.mark.parametrize(
    ("family", "said"),
    [
        (FalconConfig(vocab_size=64, hidden_size=32, num_hidden_layers=1, num_attention_heads=2), "'falcon'"),
        (MllamaConfig(), "mllama_text_model"),
        (T5Config(), "encoder-decoder"),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, str) else "",
)
def test_real_families_that_would_not_be_quantized_are_unsupported(
    tmp_path: Path, family: Any, said: str
) -> None:
    model = write_tiny_model(tmp_path / "base")
    family.save_pretrained(model)
    error, fetched = failure(model, tmp_path / "workspace")
    assert (error.reason, fetched) == (Reason.UNSUPPORTED_MODEL, 0)
    assert said in error.message


@pytest.mark.parametrize("family", ["gemma3_text", "phi3", "smollm3", "gemma2"])
def test_text_models_of_many_families_are_accepted(tmp_path: Path, family: str) -> None:
    """Gemma 3's text model inherits a flag for image support, and Phi-3 has fused projections."""
    model = write_tiny_model(tmp_path / "base")
    kind = AutoConfig.for_model(family, **SMALL, head_dim=16, pad_token_id=0, bos_token_id=1, eos_token_id=2)
    AutoModelForCausalLM.from_config(kind, dtype=torch.bfloat16).save_pretrained(model)
    result = quantize_model(DirectoryModel(model), WorkspaceLayout(tmp_path / "workspace"), NullReporter())
    assert result.quantized_modules == (4 if family == "phi3" else 7)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "JSON"),
        ("[]", "model_type"),
        ('{"hidden_size": 1}', "model_type"),
        ('{"model_type": 3}', "model_type"),
        ('{"model_type": "llama", "hidden_size": "wide"}', "hidden_size"),
        ('{"model_type": "llama", "hidden_size": 7, "num_attention_heads": 0}', "llama"),
        ('{"model_type": "llama", "num_hidden_layers": 1000000000}', "num_hidden_layers"),
        ("[" * 100_000, "JSON"),
    ],
)
def test_a_config_that_no_model_can_be_built_from_is_invalid(tmp_path: Path, content: str, said: str) -> None:
    model = write_tiny_model(tmp_path / "base")
    (model / "config.json").write_text(content)
    error, fetched = failure(model, tmp_path / "workspace")
    assert (error.reason, fetched) == (Reason.INVALID_MODEL, 0)
    assert said in error.message


def rewrite(change: Callable[[dict[str, torch.Tensor]], None]) -> Callable[[Path], None]:
    """Return a change of the model's tensors."""

    def apply(model: Path) -> None:
        tensors = load_file(model / SINGLE)
        change(tensors)
        save_file(tensors, model / SINGLE, metadata={"format": "pt"})

    return apply


UP = "model.layers.1.mlp.up_proj.weight"
NORM = "model.norm.weight"


def set_value(name: str, place: tuple[int, ...], value: float) -> Callable[[dict[str, torch.Tensor]], None]:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors[name][place] = value

    return change


def replace(name: str, tensor: torch.Tensor | None) -> Callable[[dict[str, torch.Tensor]], None]:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        if tensor is None:
            del tensors[name]
        else:
            tensors[name] = tensor

    return change


def float32_beyond_bf16(tensors: dict[str, torch.Tensor]) -> None:
    tensors[UP] = tensors[UP].float()
    tensors[UP][2, 4] = 3.4e38


TENSORS: list[tuple[str, Callable[[dict[str, torch.Tensor]], None], Reason, tuple[str, ...]]] = [
    ("NaN", set_value(UP, (3, 5), float("nan")), Reason.INVALID_MODEL, (UP, "[3, 5]")),
    ("infinity", set_value(UP, (0, 0), float("-inf")), Reason.INVALID_MODEL, (UP, "[0, 0]")),
    ("NaN in a copied tensor", set_value(NORM, (7,), float("nan")), Reason.INVALID_MODEL, (NORM, "[7]")),
    ("beyond bf16", float32_beyond_bf16, Reason.INVALID_MODEL, (UP, "[2, 4]")),
    ("missing", replace(UP, None), Reason.INVALID_MODEL, (UP, "missing 1")),
    ("surplus", replace("model.other.weight", torch.ones(3)), Reason.INVALID_MODEL, ("model.other.weight",)),
    ("shape", replace(NORM, torch.ones(10)), Reason.INVALID_MODEL, (NORM, "[64]", "[10]")),
    ("transposed", replace(UP, torch.ones(64, 160)), Reason.INVALID_MODEL, (UP, "[160, 64]")),
    ("empty", replace(NORM, torch.ones(0)), Reason.INVALID_MODEL, (NORM, "[0]")),
    ("float64", replace(NORM, torch.ones(64, dtype=torch.float64)), Reason.UNSUPPORTED_MODEL, (NORM, "F64")),
    ("int8", replace(UP, torch.ones(160, 64, dtype=torch.int8)), Reason.UNSUPPORTED_MODEL, (UP, "I8")),
    (
        "fp8",
        replace(UP, torch.ones(160, 64).to(torch.float8_e4m3fn)),
        Reason.UNSUPPORTED_MODEL,
        (UP, "quantized already"),
    ),
    (
        "packed by GPTQ",
        replace("model.layers.0.mlp.up_proj.qweight", torch.ones(4, dtype=torch.int32)),
        Reason.UNSUPPORTED_MODEL,
        ("qweight", "quantized already"),
    ),
]


@pytest.mark.parametrize(
    ("change", "reason", "said"), [case[1:] for case in TENSORS], ids=[case[0] for case in TENSORS]
)
def test_tensors_that_do_not_fit_are_named(
    tmp_path: Path,
    change: Callable[[dict[str, torch.Tensor]], None],
    reason: Reason,
    said: tuple[str, ...],
) -> None:
    model = write_tiny_model(tmp_path / "base")
    rewrite(change)(model)
    error, _ = failure(model, tmp_path / "workspace")
    assert error.reason is reason, error.message
    for part in said:
        assert part in error.message


def test_old_buffers_without_a_meaning_are_ignored(tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path / "base")
    rewrite(replace("model.layers.0.self_attn.rotary_emb.inv_freq", torch.ones(8)))(model)
    quantize_model(DirectoryModel(model), WorkspaceLayout(tmp_path / "workspace"), NullReporter())


def sharded(tmp_path: Path) -> tuple[Path, dict[str, str]]:
    """Return a model of several weight files and its weight map."""
    model = write_tiny_model(tmp_path / "base")
    AutoModelForCausalLM.from_pretrained(model).save_pretrained(model, max_shard_size="100KB")
    (model / SINGLE).unlink()
    return model, json.loads((model / INDEX).read_text())["weight_map"]


def write_index(model: Path, weight_map: Any) -> None:
    (model / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def test_a_wrong_index_is_rejected_before_weights_are_fetched(tmp_path: Path) -> None:
    model, weight_map = sharded(tmp_path)
    cases = [
        ({**weight_map, UP: "model-00099-of-00099.safetensors"}, "model-00099-of-00099.safetensors"),
        ({name: file for name, file in weight_map.items() if name != UP}, UP),
        ({**weight_map, "model.other.weight": weight_map[UP]}, "model.other.weight"),
        ({**weight_map, UP: "../elsewhere.safetensors"}, "elsewhere"),
        ([], "weight_map"),
    ]
    for number, (changed, said) in enumerate(cases):
        write_index(model, changed)
        error, fetched = failure(model, tmp_path / str(number))
        assert (error.reason, fetched) == (Reason.INVALID_MODEL, 0)
        assert said in error.message
    write_index(model, {**weight_map, UP.replace(".weight", ".qweight"): weight_map[UP]})
    error, fetched = failure(model, tmp_path / "quantized")
    assert (error.reason, fetched) == (Reason.UNSUPPORTED_MODEL, 0)


def test_a_tensor_in_two_files_is_named_with_both(tmp_path: Path) -> None:
    model, weight_map = sharded(tmp_path)
    first, last = min(weight_map.values()), max(weight_map.values())
    tensors = load_file(model / last)
    name, tensor = next(iter(load_file(model / first).items()))
    save_file({**tensors, name: tensor}, model / last, metadata={"format": "pt"})
    error, _ = failure(model, tmp_path / "workspace")
    assert error.reason is Reason.INVALID_MODEL
    assert all(part in error.message for part in (name, first, last))


def test_a_file_that_is_truncated_during_reading_has_a_reason(tmp_path: Path) -> None:
    """A memory map of the file would end the process with a signal instead."""
    model = write_tiny_model(tmp_path / "base")

    class Shrinking(DirectoryModel):
        def fetch(self, name: str, on_bytes: Callable[[int, int | None], None]) -> Path:
            path = super().fetch(name, on_bytes)
            monkeypatch.setattr("finetune_trainer.quantization.file_quantizer.TensorReader.__enter__", shrink)
            return path

    def shrink(self: Any) -> Any:
        with self._path.open("r+b") as file:
            file.truncate(self._path.stat().st_size - 1000)
        return opened(self)

    from finetune_trainer.model.safetensors_file import TensorReader  # noqa: PLC0415 -- its real method is kept here

    opened = TensorReader.__enter__
    with pytest.MonkeyPatch.context() as monkeypatch, pytest.raises(StageError, match="cut short") as caught:
        quantize_model(Shrinking(model), WorkspaceLayout(tmp_path / "workspace"), NullReporter())
    assert caught.value.reason is Reason.INVALID_MODEL


def test_tied_weights_are_optional(tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path / "base", tied=True)
    first = quantize_model(DirectoryModel(model), WorkspaceLayout(tmp_path / "one"), NullReporter())
    tensors = load_file(model / SINGLE)
    assert "lm_head.weight" not in tensors
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, model / SINGLE, metadata={"format": "pt"})
    second = quantize_model(DirectoryModel(model), WorkspaceLayout(tmp_path / "two"), NullReporter())
    assert first.parameters == second.parameters


def test_experts_whose_rows_are_interleaved_in_the_files_are_unsupported(tmp_path: Path) -> None:
    small_model(AutoConfig.for_model("inkling2_text")).save_pretrained(tmp_path / "base")
    error, fetched = failure(tmp_path / "base", tmp_path / "workspace")
    assert error.reason is Reason.UNSUPPORTED_MODEL
    assert "mlp.experts.w13_weight" in error.message
    assert fetched == 0


def _renamed_head(base: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """Write a GPT-NeoX model to `base`, whose files call the head `embed_out`, and change the tensors there."""
    tiny("gpt_neox").save_pretrained(base)
    tensors = load_file(base / SINGLE)
    assert "embed_out.weight" in tensors
    change(tensors)
    save_file(tensors, base / SINGLE, metadata={"format": "pt"})
    return base


def test_a_head_has_the_name_of_the_files_or_of_the_model(tmp_path: Path) -> None:
    def name_as_the_model_does(tensors: dict[str, Any]) -> None:
        tensors["lm_head.weight"] = tensors.pop("embed_out.weight")

    theirs = _renamed_head(tmp_path / "theirs", lambda _tensors: None)
    ours = _renamed_head(tmp_path / "ours", name_as_the_model_does)
    found = [
        quantize_model(DirectoryModel(base), WorkspaceLayout(base / "workspace"), NullReporter())
        for base in (theirs, ours)
    ]
    assert found[0].parameters == found[1].parameters
    loaded = [
        load_quantized(WorkspaceLayout(base / "workspace").quantized_model, "cpu") for base in (theirs, ours)
    ]
    assert torch.equal(loaded[0].lm_head.weight, loaded[1].lm_head.weight)


def test_a_head_with_both_names_is_invalid(tmp_path: Path) -> None:
    def add(tensors: dict[str, Any]) -> None:
        tensors["lm_head.weight"] = tensors["embed_out.weight"].clone()

    error, _fetched = failure(_renamed_head(tmp_path / "base", add), tmp_path / "workspace")
    assert error.reason is Reason.INVALID_MODEL
    assert "embed_out.weight and lm_head.weight" in error.message


def test_a_missing_head_is_invalid(tmp_path: Path) -> None:
    def remove(tensors: dict[str, Any]) -> None:
        del tensors["embed_out.weight"]

    base = _renamed_head(tmp_path / "base", remove)
    error, _fetched = failure(base, tmp_path / "workspace")
    assert error.reason is Reason.INVALID_MODEL
    assert "lm_head.weight" in error.message
