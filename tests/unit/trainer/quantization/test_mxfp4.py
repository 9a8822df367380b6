"""gpt-oss in MXFP4 becomes the model in bf16 that transformers would make of it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
import torch
from finetune_trainer.errors import Reason, StageError
from finetune_trainer.model.describe import inspect_base_model
from finetune_trainer.proof.small_run import small_model
from finetune_trainer.quantization.mxfp4 import DequantizedModel, dequantize
from finetune_trainer.quantization.quantize import quantize_model
from finetune_trainer.sources.model import DirectoryModel
from finetune_trainer.telemetry.reporter import NullReporter
from finetune_trainer.workspace.layout import WorkspaceLayout
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.integrations.mxfp4 import _convert_moe_packed_tensors

if TYPE_CHECKING:
    from pathlib import Path

SETTINGS = {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn"]}


def write(folder: Path) -> Path:
    """Write a small gpt-oss whose experts are random blocks."""
    small_model(AutoConfig.for_model("gpt_oss")).to(torch.bfloat16).save_pretrained(folder)
    path = folder / "model.safetensors"
    tensors = load_file(path)
    generator = torch.Generator().manual_seed(6)
    for name in [name for name in tensors if name.endswith(("gate_up_proj", "down_proj"))]:
        experts, columns, rows = tensors.pop(name).shape
        shape = (experts, rows, columns // 32, 16)
        tensors[f"{name}_blocks"] = torch.randint(256, shape, generator=generator, dtype=torch.uint8)
        tensors[f"{name}_scales"] = torch.randint(
            118, 124, shape[:-1], generator=generator, dtype=torch.uint8
        )
    save_file(tensors, path, metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": SETTINGS}))
    return folder


def test_every_value_is_that_of_transformers() -> None:
    generator = torch.Generator().manual_seed(6)
    blocks = torch.randint(256, (3, 8, 2, 16), generator=generator, dtype=torch.uint8)
    scales = torch.randint(100, 140, (3, 8, 2), generator=generator, dtype=torch.uint8)
    known = _convert_moe_packed_tensors(blocks, scales)
    found = torch.stack([dequantize(blocks[e], scales[e]) for e in range(3)])
    assert found.dtype == torch.bfloat16
    assert torch.equal(
        found, known.reshape(found.shape) if known.shape == found.shape else known.transpose(1, 2)
    )


def test_a_checkpoint_in_mxfp4_is_quantized_like_the_one_in_bf16(tmp_path: Path) -> None:
    packed = write(tmp_path / "packed")
    source = DirectoryModel(packed)
    assert DequantizedModel.applies(source)
    plain = DequantizedModel(source, tmp_path / "dequantized")
    workspace = WorkspaceLayout(tmp_path / "workspace")
    workspace.root.mkdir()
    quantize_model(plain, workspace, NullReporter())
    assert "quantization_config" not in json.loads((workspace.base / "config.json").read_text())
    assert not (tmp_path / "dequantized" / "model.safetensors").exists()
    bf16 = tmp_path / "bf16"
    bf16.mkdir()
    (bf16 / "config.json").write_bytes((workspace.base / "config.json").read_bytes())
    tensors = load_file(packed / "model.safetensors")
    for name in [name.removesuffix("_blocks") for name in tensors if name.endswith("_blocks")]:
        blocks, scales = tensors.pop(f"{name}_blocks"), tensors.pop(f"{name}_scales")
        tensors[name] = torch.stack([dequantize(*pair) for pair in zip(blocks, scales, strict=True)])
    save_file(tensors, bf16 / "model.safetensors", metadata={"format": "pt"})
    assert inspect_base_model(bf16).packed
    other = WorkspaceLayout(tmp_path / "other")
    other.root.mkdir()
    quantize_model(DirectoryModel(bf16), other, NullReporter())
    mine, theirs = (load_file(one.quantized_model / "model.safetensors") for one in (workspace, other))
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    model = AutoModelForCausalLM.from_pretrained(bf16)
    assert bool(torch.isfinite(model(input_ids=torch.arange(3, 9)[None]).logits).all())


def test_blocks_without_scales_are_refused(tmp_path: Path) -> None:
    packed = write(tmp_path / "packed")
    tensors = load_file(packed / "model.safetensors")
    name = next(name for name in tensors if name.endswith("_scales"))
    del tensors[name]
    save_file(tensors, packed / "model.safetensors", metadata={"format": "pt"})
    source = DequantizedModel(DirectoryModel(packed), tmp_path / "dequantized")
    with pytest.raises(StageError, match="scales of its groups") as caught:
        source.fetch("model.safetensors", lambda _done, _total: None)
    assert caught.value.reason is Reason.INVALID_MODEL
    assert not list((tmp_path / "dequantized").glob("*.safetensors"))


def test_other_models_are_fetched_as_they_are(tmp_path: Path) -> None:
    packed = write(tmp_path / "packed")
    config = json.loads((packed / "config.json").read_text())
    (packed / "config.json").write_text(
        json.dumps({**config, "quantization_config": {"quant_method": "gptq"}})
    )
    assert not DequantizedModel.applies(DirectoryModel(packed))
