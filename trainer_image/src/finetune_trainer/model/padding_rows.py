"""Restores what transformers overwrites while it loads: the row of the padding token in an embedding.

transformers initializes a module after it has loaded the module's weights, and guards the loaded tensors by a mark on each.
The initializer of some families (Youtu) writes zeros to a slice of the embedding, which has no such mark.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open

if TYPE_CHECKING:
    from pathlib import Path


@torch.no_grad()
def restore_padding_rows(model: Any, folder: Path) -> None:
    """Give each embedding of `model` its padding row from the weight files in `folder`.

    An embedding that the files do not have, such as a tied one, stays as it is. Raises OSError if a file cannot be read.
    """
    rows = {
        f"{name}.weight": module
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Embedding) and module.padding_idx is not None
    }
    for path in sorted(folder.glob("*.safetensors")) if rows else ():
        with safe_open(path, framework="pt") as file:
            for name in rows.keys() & set(file.keys()):
                module = rows[name]
                row = file.get_slice(name)[module.padding_idx]
                module.weight[module.padding_idx].copy_(row)
