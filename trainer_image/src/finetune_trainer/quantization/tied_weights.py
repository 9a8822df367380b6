"""Compares tensors that are one tensor by the config, if the weight files hold both."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from finetune_trainer.errors import Reason, StageError
from finetune_trainer.model.safetensors_file import TensorReader

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

_ELEMENTS_AT_ONCE = 16 * 1024 * 1024


def require_equal_ties(ties: Iterable[tuple[str, str]], files: Mapping[str, Path]) -> None:
    """Compare the values of each pair in `ties`; `files` has the written file of each tensor.

    transformers 5 would keep two different tensors, and other servers would drop one of them. Raises
    StageError(InvalidModel) with their names and the first difference.
    """
    for name, other in ties:
        if name in files and other in files:
            row = _first_difference(files[name], name, files[other], other)
            if row is not None:
                raise StageError(
                    Reason.INVALID_MODEL,
                    f"{name} and {other} must be equal, because the config ties them (`tie_word_embeddings`), found other "
                    f"values from row {row} on; if the two were trained apart, set `tie_word_embeddings` to false in "
                    "config.json, else remove the one that is not used",
                )


def _first_difference(path: Path, name: str, other_path: Path, other: str) -> int | None:
    first, second = TensorReader(path), TensorReader(other_path)
    entry = next(entry for entry in first.entries if entry.name == name)
    twin = next(entry for entry in second.entries if entry.name == other)
    width = entry.shape[-1] if entry.shape else 1
    for (start, left), (_, right) in zip(
        first.chunks(entry, _ELEMENTS_AT_ONCE), second.chunks(twin, _ELEMENTS_AT_ONCE), strict=True
    ):
        # Both are in bf16, whatever the base's types are.
        different = np.flatnonzero(left.view(np.uint16) != right.view(np.uint16))
        if different.size:
            return (start + int(different[0])) // width
    return None
