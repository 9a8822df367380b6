"""The small files of an artifact: copies of the base model's files, and what a server must read in them."""

from __future__ import annotations

import shutil
from fnmatch import fnmatch
from typing import TYPE_CHECKING, Literal

from finetune_trainer.stages.merge.serving_files import CONFIG, add_stops, keep_one_template, name_weights
from finetune_trainer.stages.merge.whole_adapter import name_whole_modules

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from finetune_trainer.workspace.layout import WorkspaceLayout

_LAYOUT = "layout.json"
# The artifact gets a new card; the base's card stays under another name.
_RENAMED = {"README.md": "README.base.md"}
# The tokenizer, the chat template and the generation config, which an adapter needs as much as a whole model does.
_SERVED_WITH_ADAPTER = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "tekken.json",
    "*.model",
    "*.tiktoken",
    "chat_template.jinja",
    "generation_config.json",
)


def copy_small_files(
    base: Path, folder: Path, dtype: Literal["BFloat16", "AsBase"], learned_ends: Sequence[int]
) -> None:
    """Copy config, tokenizer and all other small files of the base into the merged model's folder.

    They keep their bytes, except for the members that `serving_files` changes. `learned_ends` are the tokens at which
    the trained answers end. Raises StageError(ArtifactVerificationFailed) if the base is quantized.
    """
    for path in _files(base):
        shutil.copyfile(path, folder / _RENAMED.get(path.name, path.name))
    name_weights(folder, dtype)
    keep_one_template(folder)
    add_stops(folder, base / CONFIG, learned_ends)


def copy_adapter(workspace: WorkspaceLayout, folder: Path, learned_ends: Sequence[int]) -> None:
    """Copy the adapter that TRAIN saved, with the tokenizer, chat template and generation config of its training.

    Its modules get the names of the base's own class (`whole_adapter`).
    """
    shutil.copytree(workspace.adapter, folder)
    name_whole_modules(folder, workspace.base)
    for path in _files(workspace.base):
        if any(fnmatch(path.name, pattern) for pattern in _SERVED_WITH_ADAPTER):
            shutil.copyfile(path, folder / path.name)
    keep_one_template(folder)
    add_stops(folder, workspace.base / CONFIG, learned_ends)


def _files(base: Path) -> list[Path]:
    return [path for path in sorted(base.iterdir()) if path.is_file() and path.name != _LAYOUT]
