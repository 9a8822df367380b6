"""The weights that an adapter was trained on, written as a plain model by bitsandbytes' own dequantization."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import torch
from bitsandbytes.functional import QuantState, dequantize_4bit
from finetune_trainer.model.layout import read_base_layout
from safetensors.torch import load_file, save_file

if TYPE_CHECKING:
    from pathlib import Path

    from finetune_trainer.workspace.layout import WorkspaceLayout


def write_base_as_trained(workspace: WorkspaceLayout, folder: Path) -> Path:
    """Write the dequantized base in bf16, in the files of the base, with its small files; return `folder`."""
    folder.mkdir()
    for path in workspace.base.iterdir():
        shutil.copyfile(path, folder / path.name)
    layout = read_base_layout(workspace)
    for file in layout.files:
        stored = load_file(workspace.quantized_model / file.name)
        tensors = {}
        for tensor in file.tensors:
            value = stored[tensor.name]
            if tensor.name.removesuffix(".weight") in layout.quantized:
                parts = {name: part for name, part in stored.items() if name.startswith(f"{tensor.name}.")}
                value = dequantize_4bit(value, QuantState.from_dict(parts, device=torch.device("cpu")))
            tensors[tensor.name] = value.bfloat16()
        save_file(tensors, folder / file.name, metadata={"format": "pt"})
    return folder
