"""Which weight files an artifact has, and its index."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from finetune_trainer.model.layout import BaseLayout, WeightFile
from finetune_trainer.workspace.layout import write_text_atomically

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from finetune_trainer.model.safetensors_file import PlannedTensor

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
LARGEST_FILE = 5_000_000_000
"""Bytes of tensors in one file at most, by the hub's convention. A larger tensor has a file of its own."""


def split_files(layout: BaseLayout, largest: int = LARGEST_FILE) -> BaseLayout:
    """Return the layout with files of at most `largest` bytes, in the same order of tensors.

    If no file is larger, the files are those of the base. Otherwise all get the numbered names that loaders know.
    """
    parts = [part for file in layout.files for part in _parts(file.tensors, largest)]
    if len(parts) == len(layout.files):
        return layout
    files = tuple(
        WeightFile(f"model-{number:05d}-of-{len(parts):05d}.safetensors", part)
        for number, part in enumerate(parts, start=1)
    )
    return replace(layout, files=files)


def write_index(folder: Path, layout: BaseLayout, *, resized: bool) -> None:
    """Write the index of an artifact's weight files, unless that of the base in `folder` is right.

    `resized` says that the tensors have other types than the base's. An artifact of one file of the usual name needs no
    index.
    """
    path = folder / INDEX
    index = _read(path)
    files = {tensor.name: file.name for file in layout.files for tensor in file.tensors}
    if index is None and set(files.values()) == {SINGLE}:
        return
    if index is not None and index.get("weight_map") == files and not resized:
        return
    metadata = index.get("metadata") if index is not None else None
    document = {
        "metadata": {**(metadata if isinstance(metadata, dict) else {}), "total_size": layout.bytes},
        "weight_map": dict(sorted(files.items())),
    }
    write_text_atomically(path, json.dumps(document, indent=2) + "\n")


def _parts(tensors: tuple[PlannedTensor, ...], largest: int) -> Iterator[tuple[PlannedTensor, ...]]:
    part: list[PlannedTensor] = []
    size = 0
    for tensor in tensors:
        if part and size + tensor.bytes > largest:
            yield tuple(part)
            part, size = [], 0
        part.append(tensor)
        size += tensor.bytes
    yield tuple(part)


def _read(path: Path) -> dict[str, Any] | None:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    return document if isinstance(document, dict) else None
