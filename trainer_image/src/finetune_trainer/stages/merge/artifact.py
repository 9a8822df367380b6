"""The small files of an artifact: copies of the base model's files."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING

from finetune_trainer.errors import Reason, StageError

if TYPE_CHECKING:
    from pathlib import Path

    from finetune_trainer.workspace.layout import WorkspaceLayout

_LAYOUT = "layout.json"
# The artifact gets a new card; the base's card stays under another name.
_RENAMED = {"README.md": "README.base.md"}


def copy_small_files(base: Path, folder: Path) -> None:
    """Copy config, tokenizer and all other small files of the base unchanged.

    They are not saved by transformers 5, because stacks with transformers 4 misread its files. Raises
    StageError(ArtifactVerificationFailed) if the config has a quantization_config.
    """
    for path in sorted(base.iterdir()):
        if path.is_file() and path.name != _LAYOUT:
            shutil.copyfile(path, folder / _RENAMED.get(path.name, path.name))
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if "quantization_config" in config:
        raise StageError(
            Reason.ARTIFACT_VERIFICATION_FAILED,
            "the merged model's config.json must have no quantization_config, found one; choose a base model that is "
            "not quantized",
        )


def copy_adapter(workspace: WorkspaceLayout, folder: Path) -> None:
    """Copy the adapter that TRAIN saved."""
    shutil.copytree(workspace.adapter, folder)
