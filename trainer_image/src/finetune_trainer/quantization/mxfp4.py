"""A model source whose MXFP4 experts are dequantized when their file is fetched: gpt-oss is published in 4 bits alone.

MXFP4 (OCP Microscaling Formats 1.0): blocks of 32 values share a scale of 8 bits, a power of two, and each value has 4 bits:
sign, two bits of exponent, one of mantissa. All of its values are exact in bf16. Memory: one expert.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import safe_open

from finetune_trainer.contract.refusals import dequantized_in_prepare
from finetune_trainer.errors import Reason, StageError
from finetune_trainer.model.safetensors_file import PlannedTensor, TensorWriter, read_header
from finetune_trainer.sources.model import INDEX_FILE

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from finetune_trainer.sources.model import ModelSource

_open: Any = safe_open  # it is only partly typed
_BLOCKS, _SCALES = "_blocks", "_scales"
_VALUES = torch.tensor(
    [0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], dtype=torch.bfloat16
)
_BIAS = 127
_CONFIG = "config.json"


def dequantize(blocks: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """Return the values (columns, rows) in bf16 of a matrix (rows, columns).

    `blocks` is (rows, groups, 16) in uint8, two values a byte, the first in the low half; `scales` is (rows, groups). The
    model multiplies with the matrix from the right, so its parameter is the transpose.
    """
    values = torch.stack([_VALUES[(blocks & 15).long()], _VALUES[(blocks >> 4).long()]], dim=-1).flatten(-2)
    exact = torch.ldexp(values, scales.to(torch.int32).unsqueeze(-1) - _BIAS)
    return exact.flatten(-2).T.contiguous()


class DequantizedModel:
    """A source of the same model in bf16. Its files are in `folder` while they are used."""

    def __init__(self, source: ModelSource, folder: Path) -> None:
        self._source = source
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    @staticmethod
    def applies(source: ModelSource) -> bool:
        """Return whether the source's config.json says MXFP4 and a type that is dequantized."""
        path = next((path for path in source.small_files() if path.name == _CONFIG), None)
        try:
            document = json.loads(path.read_text(encoding="utf-8")) if path is not None else None
        except (OSError, ValueError):
            return False
        return isinstance(document, dict) and dequantized_in_prepare(document)

    @property
    def commit(self) -> str | None:
        """Commit of the repository; None if there is none."""
        return self._source.commit

    def identity(self) -> dict[str, Any]:
        """Return the identity of the model's bytes."""
        return {**self._source.identity(), "dequantized": "MXFP4"}

    def small_files(self) -> list[Path]:
        """Return the small files, with a config and an index of the model in bf16."""
        return [self._small(path) for path in self._source.small_files()]

    def weight_files(self) -> list[str]:
        """Names of the weight files in a fixed order."""
        return self._source.weight_files()

    def fetch(self, name: str, on_bytes: Callable[[int, int | None], None]) -> Path:
        """Fetch a weight file and dequantize it; a file without such tensors stays as it is.

        Raises StageError(InvalidModel) if blocks and scales do not belong together.
        """
        done = self._folder / name
        if done.is_file():
            on_bytes(done.stat().st_size, done.stat().st_size)
            return done
        path = self._source.fetch(name, on_bytes)
        if not any(entry.name.endswith(_BLOCKS) for entry in read_header(path)):
            return path
        _rewrite(path, done)
        return done

    def release(self, name: str) -> None:
        """Remove the dequantized file, and release the source's."""
        (self._folder / name).unlink(missing_ok=True)
        self._source.release(name)

    def _small(self, path: Path) -> Path:
        if path.name not in (_CONFIG, INDEX_FILE):
            return path
        document = json.loads(path.read_text(encoding="utf-8"))
        if path.name == _CONFIG:
            document.pop("quantization_config")
        else:
            document["weight_map"] = {
                name.removesuffix(_BLOCKS): file
                for name, file in document["weight_map"].items()
                if not name.endswith(_SCALES)
            }
        target = self._folder / path.name
        target.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
        return target


def _rewrite(path: Path, target: Path) -> None:
    """Write the file with each pair of blocks and scales as one tensor in bf16."""
    entries = {entry.name: entry for entry in read_header(path)}
    pairs = {name.removesuffix(_BLOCKS) for name in entries if name.endswith(_BLOCKS)}
    for name in pairs:
        blocks, scales = entries[f"{name}{_BLOCKS}"], entries.get(f"{name}{_SCALES}")
        if (
            scales is None
            or len(blocks.shape) != 4
            or blocks.shape[:-1] != scales.shape
            or blocks.shape[-1] != 16
        ):
            raise StageError(
                Reason.INVALID_MODEL,
                f"{name} must have blocks (experts, rows, groups, 16) and scales of its groups in one file, found "
                f"{list(blocks.shape)} and {None if scales is None else list(scales.shape)} in {path.name}; fetch the model "
                "again",
            )
    planned = [
        PlannedTensor(name, entry.dtype, entry.shape)
        for name, entry in entries.items()
        if not name.endswith((_BLOCKS, _SCALES))
    ]
    shapes = {name: entries[f"{name}{_BLOCKS}"].shape for name in pairs}
    planned.extend(
        PlannedTensor(name, "BF16", (e, 32 * groups, rows)) for name, (e, rows, groups, _) in shapes.items()
    )
    writer = TensorWriter(target, planned, ())
    try:
        with _open(path, framework="pt") as file:
            for tensor in planned:
                if tensor.name in pairs:
                    _write_experts(file, tensor, writer)
                else:
                    writer.write(tensor.name, 0, _bytes(file.get_tensor(tensor.name)))
        writer.finish()
    except BaseException:
        writer.abandon()
        raise


def _write_experts(file: Any, tensor: PlannedTensor, writer: TensorWriter) -> None:
    blocks, scales = (file.get_slice(f"{tensor.name}{suffix}") for suffix in (_BLOCKS, _SCALES))
    size = tensor.bytes // tensor.shape[0]
    for expert in range(tensor.shape[0]):
        one = slice(expert, expert + 1)
        writer.write(tensor.name, expert * size, _bytes(dequantize(blocks[one][0], scales[one][0])))


def _bytes(tensor: torch.Tensor) -> np.ndarray[Any, np.dtype[np.uint8]]:
    found: np.ndarray[Any, np.dtype[np.uint8]] = tensor.contiguous().view(-1).view(torch.uint8).numpy()
    return found
