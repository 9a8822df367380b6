"""Small random models that also see or hear, and their weight files in other forms than transformers writes them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from finetune_trainer.model.safetensors_file import TensorReader
from safetensors.torch import load_file, save_file

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    import torch

INDEX = "model.safetensors.index.json"


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    """Return all tensors of the weight files in a folder."""
    return {name: tensor for path in weight_files(folder) for name, tensor in load_file(path).items()}


def weight_files(folder: Path) -> list[Path]:
    """Return the weight files in a folder."""
    return sorted(folder.glob("*.safetensors"))


def bytes_of(folder: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """Return type, shape and bytes of each tensor in a folder's weight files."""
    found = {}
    for path in weight_files(folder):
        content = path.read_bytes()
        for entry in TensorReader(path).entries:
            found[entry.name] = (entry.dtype, entry.shape, content[entry.start : entry.end])
    return found


def rewrite(
    folder: Path,
    *,
    files: int = 1,
    rename: Callable[[str], str] = lambda name: name,
    more: Mapping[str, torch.Tensor] | None = None,
) -> None:
    """Write the weight files of a folder again: other names, `more` tensors, and neighbors in different `files`."""
    tensors = {rename(name): tensor for name, tensor in tensors_of(folder).items()} | dict(more or {})
    for path in weight_files(folder):
        path.unlink()
    (folder / INDEX).unlink(missing_ok=True)
    parts: list[dict[str, torch.Tensor]] = [{} for _ in range(files)]
    for place, (name, tensor) in enumerate(sorted(tensors.items())):
        parts[place % files][name] = tensor.contiguous()
    weight_map = {}
    for number, part in enumerate(parts, start=1):
        name = "model.safetensors" if files == 1 else f"model-{number:05d}-of-{files:05d}.safetensors"
        save_file(part, folder / name, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(part, name))
    if files > 1:
        (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
