"""Copies tensors of a weight file byte for byte, such as those that do not belong to the text model."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from finetune_trainer.model.safetensors_file import PlannedTensor, TensorReader, TensorWriter

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_AT_ONCE = 8 * 1024 * 1024


def copy_tensors(path: Path, names: Mapping[str, str], output: Path) -> None:
    """Write the tensors in `names` of the file at `path` into `output`, under the names that it gives them.

    Memory: one piece of a tensor. Raises StageError as TensorReader does; no output file remains then.
    """
    with TensorReader(path) as reader:
        entries = [entry for entry in reader.entries if entry.name in names]
        planned = [PlannedTensor(names[entry.name], entry.dtype, entry.shape) for entry in entries]
        writer = TensorWriter(output, planned, ())
        try:
            for entry in entries:
                for first in range(0, entry.end - entry.start, _AT_ONCE):
                    piece = np.empty(min(_AT_ONCE, entry.end - entry.start - first), np.uint8)
                    reader.read_into(entry, first, piece)
                    writer.write(names[entry.name], first, piece)
        except BaseException:
            writer.abandon()
            raise
        writer.finish()
