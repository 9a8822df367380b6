"""A synthetic Llama with random weights, as the workspace that MERGE reads and as the base model that peft reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from finetune_trainer.cpu import available_cpus
from finetune_trainer.model.safetensors_file import PlannedTensor, TensorWriter, read_header
from finetune_trainer.quantization.file_quantizer import FileQuantizer
from finetune_trainer.workspace.digests import weights_digest
from finetune_trainer.workspace.layout import WorkspaceLayout, write_json_atomically
from safetensors.torch import save_file
from transformers import LlamaConfig

from tests.support.workspaces import run_spec

if TYPE_CHECKING:
    from collections.abc import Iterator

RANK, ALPHA = 16, 32
_WIDTH, _INNER, _VOCABULARY, _HEADS = 2048, 5632, 32000, 32
_SHARD = 500_000_000
_MATRICES = {
    "self_attn.q_proj": (_WIDTH, _WIDTH),
    "self_attn.k_proj": (_WIDTH, _WIDTH),
    "self_attn.v_proj": (_WIDTH, _WIDTH),
    "self_attn.o_proj": (_WIDTH, _WIDTH),
    "mlp.gate_proj": (_INNER, _WIDTH),
    "mlp.up_proj": (_INNER, _WIDTH),
    "mlp.down_proj": (_WIDTH, _INNER),
}
_PER_LAYER = sum(rows * columns for rows, columns in _MATRICES.values()) + 2 * _WIDTH
_OUTSIDE = 2 * _VOCABULARY * _WIDTH + _WIDTH


def layers_for(parameters: float) -> int:
    """Return the number of layers whose model comes closest to `parameters`; at least one."""
    return max(1, round((parameters - _OUTSIDE) / _PER_LAYER))


def parameters_of(layers: int) -> int:
    """Return the number of parameters of the model."""
    return _OUTSIDE + layers * _PER_LAYER


def _modules(layers: int) -> dict[str, tuple[int, int]]:
    return {
        f"model.layers.{number}.{name}": shape
        for number in range(layers)
        for name, shape in _MATRICES.items()
    }


def _tensors(layers: int) -> Iterator[PlannedTensor]:
    yield PlannedTensor("model.embed_tokens.weight", "BF16", (_VOCABULARY, _WIDTH))
    for number in range(layers):
        prefix = f"model.layers.{number}."
        for name, shape in _MATRICES.items():
            yield PlannedTensor(f"{prefix}{name}.weight", "BF16", shape)
        for norm in ("input_layernorm", "post_attention_layernorm"):
            yield PlannedTensor(f"{prefix}{norm}.weight", "BF16", (_WIDTH,))
    yield PlannedTensor("model.norm.weight", "BF16", (_WIDTH,))
    yield PlannedTensor("lm_head.weight", "BF16", (_VOCABULARY, _WIDTH))


def _shards(layers: int) -> list[list[PlannedTensor]]:
    shards: list[list[PlannedTensor]] = [[]]
    for tensor in _tensors(layers):
        if sum(one.bytes for one in shards[-1]) + tensor.bytes > _SHARD:
            shards.append([])
        shards[-1].append(tensor)
    return shards


def write_synthetic(root: Path, layers: int) -> tuple[Path, WorkspaceLayout]:
    """Write `root/base` in bf16 and `root/workspace` with the 4-bit checkpoint and an adapter; return both.

    `root/digest` has the digest of the checkpoint, and `root/run.json` a run spec. Weights are normally distributed with
    a deviation of 0.02. The adapter's update is about a hundredth of that, as after a short training.
    """
    base, workspace = root / "base", WorkspaceLayout(root / "workspace")
    names = []
    for folder in (base, workspace.base, workspace.quantized_model, workspace.adapter):
        folder.mkdir(parents=True)
    generator = torch.Generator().manual_seed(1)
    modules = _modules(layers)
    shards = _shards(layers)
    files: list[dict[str, object]] = []
    weight_map: dict[str, str] = {}
    with FileQuantizer(available_cpus()) as quantizer:
        for number, shard in enumerate(shards, start=1):
            path = base / f"model-{number:05}-of-{len(shards):05}.safetensors"
            writer = TensorWriter(path, shard, [])
            for tensor in shard:
                values = torch.randn(tensor.shape, generator=generator) * 0.02
                values = values + 1 if len(tensor.shape) == 1 else values
                writer.write(tensor.name, 0, values.bfloat16().view(torch.uint8).numpy().reshape(-1))
            writer.finish()
            names.append(path.name)
            weight_map |= dict.fromkeys((tensor.name for tensor in shard), path.name)
            quantizer.quantize(
                path,
                {f"{name}.weight" for name in modules},
                workspace.quantized_model / path.name,
                lambda _: None,
            )
            entries = [
                {"name": entry.name, "dtype": entry.dtype, "shape": list(entry.shape)}
                for entry in read_header(path)
            ]
            files.append({"name": path.name, "tensors": entries})
        digest = weights_digest(workspace.quantized_model, names, quantizer.threads)
    (root / "digest").write_text(digest, encoding="ascii")
    spec = run_spec(workspace.root, root / "output")
    (root / "run.json").write_text(spec.model_dump_json(by_alias=True, exclude_unset=True), encoding="utf-8")
    _write_small_files(base, layers, weight_map)
    _write_small_files(workspace.base, layers, weight_map)
    write_json_atomically(workspace.base_layout, {"files": files, "quantized": list(modules)})
    _write_adapter(workspace.adapter, modules, base)
    return base, workspace


def _write_small_files(folder: Path, layers: int, weight_map: dict[str, str]) -> None:
    config = LlamaConfig(
        hidden_size=_WIDTH,
        intermediate_size=_INNER,
        num_hidden_layers=layers,
        num_attention_heads=_HEADS,
        num_key_value_heads=_HEADS,
        vocab_size=_VOCABULARY,
        tie_word_embeddings=False,
        architectures=["LlamaForCausalLM"],
        dtype="bfloat16",
    )
    config.save_pretrained(folder)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")


def _write_adapter(folder: Path, modules: dict[str, tuple[int, int]], base: Path) -> None:
    generator = torch.Generator().manual_seed(2)
    tensors = {}
    for name, (rows, columns) in modules.items():
        prefix = f"base_model.model.{name}.lora_"
        tensors[f"{prefix}A.weight"] = torch.randn((RANK, columns), generator=generator) * 0.02
        tensors[f"{prefix}B.weight"] = torch.randn((rows, RANK), generator=generator) * 0.001
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": str(base),
        "r": RANK,
        "lora_alpha": ALPHA,
        "lora_dropout": 0.0,
        "target_modules": sorted({name.rsplit(".", 1)[1] for name in modules}),
        "bias": "none",
        "inference_mode": True,
    }
    (folder / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
