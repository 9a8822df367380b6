"""Gives an adapter the names of the whole model, if its base also sees or hears.

TRAIN knows the text model alone. Programs load the base as it is published, whose class has other names.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from transformers import AutoConfig

from finetune_trainer.contract.refusals import TEXT_PART
from finetune_trainer.model.safetensors_file import read_header
from finetune_trainer.model.text_part import find_text_part
from finetune_trainer.quantization.kept_tensors import copy_tensors

if TYPE_CHECKING:
    from pathlib import Path

_CONFIG, _WEIGHTS, _PREFIX = "adapter_config.json", "adapter_model.safetensors", "base_model.model."


def name_whole_modules(folder: Path, base: Path) -> None:
    """Rename the modules of the adapter in `folder` to those of the model whose config.json is in `base`.

    The adapter of a text model stays as it is.
    """
    document = json.loads((base / "config.json").read_text(encoding="utf-8"))
    if TEXT_PART not in document:
        return
    part = find_text_part(AutoConfig.from_pretrained(base, local_files_only=True, trust_remote_code=False))
    if part is None:
        return
    path = folder / _WEIGHTS
    names = {
        entry.name: f"{_PREFIX}{part.whole_name(entry.name.removeprefix(_PREFIX))}"
        for entry in read_header(path)
    }
    renamed = folder / f".{_WEIGHTS}"
    copy_tensors(path, names, renamed)
    renamed.replace(path)
    path.chmod(0o644)
    config = json.loads((folder / _CONFIG).read_text(encoding="utf-8"))
    # Endings of names would also be those of modules in a tower.
    adapted = {
        name.removeprefix(_PREFIX).partition(".lora_")[0] for name in names.values() if ".lora_" in name
    }
    config["target_modules"] = sorted(adapted)
    (folder / _CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
