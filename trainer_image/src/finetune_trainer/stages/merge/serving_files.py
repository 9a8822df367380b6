"""Changes to the files that a server of an artifact reads, where the base's own would mislead it.

A file that needs no change keeps its bytes: transformers 5 would write files that transformers 4 misreads.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Literal

from finetune_trainer.errors import Reason, StageError
from finetune_trainer.model.generation import GENERATION_CONFIG, read_generation_config, with_stops

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

CONFIG = "config.json"
TEMPLATE = "chat_template.jinja"
_TOKENIZER_CONFIG = "tokenizer_config.json"
_PROCESSOR_CONFIG = "processor_config.json"
_PROCESSOR_TEMPLATE = "chat_template.json"
_QUANTIZER_MEMBERS = ("quantization_config", "compression_config", "quantization")
_DTYPE_MEMBERS = ("dtype", "torch_dtype")


def name_weights(folder: Path, dtype: Literal["BFloat16", "AsBase"]) -> None:
    """Make config.json describe the written weights: their type, no quantizer and no code of a repository.

    Raises StageError(ArtifactVerificationFailed) if the config has the settings of a quantizer.
    """
    config = _read(folder / CONFIG) or {}
    settings = next((name for name in _QUANTIZER_MEMBERS if config.get(name)), None)
    if settings is not None:
        raise StageError(
            Reason.ARTIFACT_VERIFICATION_FAILED,
            f"the merged model's config.json must have no {settings}, found one; choose a base model that is not "
            "quantized",
        )
    # Loaders take an empty member for a quantizer, and the files that `auto_map` names are not in the artifact.
    changed = _without(config, *_QUANTIZER_MEMBERS, "auto_map")
    if dtype == "BFloat16":
        # transformers 4 reads only the older name.
        named = [name for name in _DTYPE_MEMBERS if name in changed] or ["torch_dtype"]
        changed |= dict.fromkeys(named, "bfloat16")
    _replace(folder / CONFIG, config, changed)


def keep_one_template(folder: Path) -> None:
    """Leave the chat template of the training in one place: chat_template.jinja, else tokenizer_config.json.

    transformers and vLLM read chat_template.jinja first, and llama.cpp's converter reads tokenizer_config.json first.
    """
    path = folder / _TOKENIZER_CONFIG
    config = _read(path)
    if config is not None:
        unused = ["auto_map"]
        if (folder / TEMPLATE).is_file():
            unused.append("chat_template")
        _replace(path, config, _without(config, *unused))
    # No tokenizer reads these; the server of a model that also sees or hears may. One that is the same stays.
    path = folder / TEMPLATE
    template = path.read_text(encoding="utf-8") if path.is_file() else None
    if (_read(folder / _PROCESSOR_TEMPLATE) or {}).get("chat_template") != template:
        (folder / _PROCESSOR_TEMPLATE).unlink(missing_ok=True)
    processor = _read(folder / _PROCESSOR_CONFIG)
    if processor is not None and processor.get("chat_template") != template:
        _replace(folder / _PROCESSOR_CONFIG, processor, _without(processor, "chat_template"))


def add_stops(folder: Path, config: Path, learned: Sequence[int]) -> None:
    """Make the generation config of `folder` stop at all `learned` tokens; `config` is the model's config.json."""
    generation = read_generation_config(folder)
    changed = with_stops(generation, _read(config) or {}, learned)
    if changed is not None:
        _replace(folder / GENERATION_CONFIG, generation, changed)


def _without(document: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in document.items() if name not in names}


def _read(path: Path) -> dict[str, Any] | None:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    return document if isinstance(document, dict) else None


def _replace(path: Path, document: Mapping[str, Any] | None, changed: Mapping[str, Any]) -> None:
    if changed != document:
        path.write_text(json.dumps(changed, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
