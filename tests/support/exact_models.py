"""References for merging: the trained base in float32, by bitsandbytes, and synthetic checkpoints."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import bitsandbytes.functional as bnb
import numpy as np
import torch
from finetune_trainer.model.layout import BaseLayout, WeightFile
from finetune_trainer.model.load import load_quantized, quantized_modules
from finetune_trainer.model.safetensors_file import PlannedTensor, TensorWriter
from finetune_trainer.quantization.nf4 import QuantizedSizes
from finetune_trainer.workspace.digests import weights_digest
from finetune_trainer.workspace.layout import WorkspaceLayout, write_json_atomically
from safetensors.torch import save_file


def dequantized_model(checkpoint: Path) -> Any:
    """Return the 4-bit model in `checkpoint` as plain float32 layers, without a rounding to 16 bits."""
    model = load_quantized(checkpoint, "cpu")
    for name, module in quantized_modules(model).items():
        state = module.weight.quant_state
        state.dtype = torch.float32
        weight = bnb.dequantize_4bit(module.weight.data, state)
        linear = torch.nn.Linear(module.in_features, module.out_features, bias=module.bias is not None)
        linear.weight = torch.nn.Parameter(weight)
        if module.bias is not None:
            linear.bias = torch.nn.Parameter(module.bias.data.float())
        parent, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(parent), leaf, linear)
    # peft takes a quantized model for one with 4-bit layers.
    model.is_quantized = model.is_loaded_in_4bit = False
    model.quantization_method = None
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    return model.float().eval()


def quantized_tensors(name: str, weight: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return the tensors of a weight in a 4-bit checkpoint, quantized by bitsandbytes."""
    packed, state = bnb.quantize_4bit(
        weight.bfloat16(), blocksize=64, compress_statistics=True, quant_type="nf4"
    )
    parts = {f"{name}.{suffix}": value.contiguous() for suffix, value in state.as_dict(packed=True).items()}
    return {name: packed, **parts}


def dequantized(tensors: dict[str, torch.Tensor], name: str, dtype: torch.dtype) -> torch.Tensor:
    """Return bitsandbytes' values of a weight of `quantized_tensors`."""
    state = bnb.QuantState.from_dict(
        {key: value for key, value in tensors.items() if key.startswith(f"{name}.")}, torch.device("cpu")
    )
    state.dtype = dtype
    return bnb.dequantize_4bit(tensors[name], state)


def write_checkpoint(folder: Path, weights: dict[str, torch.Tensor], *, dtype: str = "BF16") -> BaseLayout:
    """Write one file with each weight in NF4, and a bias and a norm in bf16; return the layout in `dtype`."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors: dict[str, torch.Tensor] = {}
    for name, weight in weights.items():
        tensors |= quantized_tensors(f"{name}.weight", weight)
    others = {"first.bias": torch.linspace(-1, 1, 8).bfloat16(), "norm.weight": torch.ones(3, 5).bfloat16()}
    save_file({**tensors, **others}, folder / "model.safetensors", metadata={"format": "pt"})
    shapes = {f"{name}.weight": tuple(weight.shape) for name, weight in weights.items()}
    shapes |= {name: tuple(tensor.shape) for name, tensor in others.items()}
    planned = tuple(PlannedTensor(name, dtype, shape) for name, shape in shapes.items())
    return BaseLayout((WeightFile("model.safetensors", planned),), frozenset(weights))


def bits(values: torch.Tensor) -> np.ndarray[Any, np.dtype[Any]]:
    """Return the bit patterns of floats, for comparisons that tell apart zeros and equal any NaN to itself."""
    wide: Any = values.contiguous().view(torch.uint16 if values.element_size() == 2 else torch.int32).numpy()
    return np.asarray(wide)


def write_sparse_workspace(layout: WorkspaceLayout, linears: int, width: int, vocabulary: int) -> str:
    """Write a workspace with square linear weights and one embedding, whose files are mostly holes.

    Return the digest that PREPARE would report.
    """
    name = "model.safetensors"
    sizes = QuantizedSizes(width * width)
    _, example = bnb.quantize_4bit(torch.randn(64, 64).bfloat16(), compress_statistics=True, quant_type="nf4")
    state: Any = example.as_dict(packed=True)
    modules = [f"model.layers.{number}.mlp.up_proj" for number in range(linears)]
    planned = [PlannedTensor("model.embed_tokens.weight", "BF16", (vocabulary, width))]
    for module in modules:
        weight = f"{module}.weight"
        planned += [
            PlannedTensor(weight, "U8", (sizes.packed, 1)),
            PlannedTensor(f"{weight}.absmax", "U8", (sizes.blocks,)),
            PlannedTensor(f"{weight}.quant_map", "F32", (16,)),
            PlannedTensor(f"{weight}.nested_absmax", "F32", (sizes.nested_blocks,)),
            PlannedTensor(f"{weight}.nested_quant_map", "F32", (256,)),
        ]
    layout.quantized_model.mkdir(parents=True)
    last = "quant_state.bitsandbytes__nf4"
    writer = TensorWriter(
        layout.quantized_model / name, planned, [f"{module}.weight.{last}" for module in modules]
    )
    for module in modules:
        for part in ("quant_map", "nested_quant_map"):
            writer.write(f"{module}.weight.{part}", 0, state[part].numpy().view(np.uint8))
        writer.append(f"{module}.weight.{last}", bytes(state[last].tolist()))
    writer.finish()
    tensors = [{"name": f"{module}.weight", "dtype": "BF16", "shape": [width, width]} for module in modules]
    tensors.append({"name": planned[0].name, "dtype": "BF16", "shape": [vocabulary, width]})
    write_json_atomically(
        layout.base_layout, {"files": [{"name": name, "tensors": tensors}], "quantized": modules}
    )
    write_json_atomically(
        layout.base / "config.json", {"tie_word_embeddings": True, "vocab_size": vocabulary}
    )
    layout.adapter.mkdir(parents=True)
    write_json_atomically(layout.adapter / "adapter_config.json", {"r": 16, "lora_alpha": 32})
    adapter = {
        f"base_model.model.{module}.lora_{part}.weight": torch.randn(shape) * 1e-3
        for module in modules
        for part, shape in (("A", (16, width)), ("B", (width, 16)))
    }
    save_file(adapter, layout.adapter / "adapter_model.safetensors")
    with ThreadPoolExecutor(2) as threads:
        return weights_digest(layout.quantized_model, [name], threads)


def projection(written: torch.Tensor, base: torch.Tensor, exact: torch.Tensor) -> float:
    """Return the share of the update `exact - base` that the written weight has."""
    wanted = exact.double() - base.double()
    return float(((written.double() - base.double()) * wanted).sum() / wanted.square().sum())
