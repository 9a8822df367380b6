"""Write the merged weights, tensor by tensor, in the base model's own files and order.

A quantized weight becomes the dequantized training weight plus the adapter's update, added in float32 and rounded
once. Every other tensor is the base's. Memory: one dequantized weight and one block of rows.
"""

from __future__ import annotations

import json
import os
import struct
from typing import TYPE_CHECKING

import torch
from bitsandbytes.functional import QuantState, dequantize_4bit
from safetensors import safe_open

from finetune_trainer.errors import Reason, StageError
from finetune_trainer.model.safetensors_file import TensorEntry, TensorReader, read_header

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path
    from typing import Any, BinaryIO

    from finetune_trainer.model.layout import BaseLayout, WeightFile
    from finetune_trainer.model.safetensors_file import PlannedTensor
    from finetune_trainer.stages.merge.update import LowRankUpdate

_ELEMENTS_AT_ONCE = 16 * 1024 * 1024
_TYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}


def merge_weights(
    quantized: Path,
    layout: BaseLayout,
    updates: Mapping[str, LowRankUpdate],
    target: Path,
    progress: Callable[[int, int], None],
) -> None:
    """Write every weight file of `layout` into the folder `target`; `progress` gets (bytes done, in all).

    `layout` has the types to write (`BaseLayout.stored_as`). `quantized` is the 4-bit checkpoint's folder; its files have
    the names of the base's files. Raises StageError(InternalError) if an update has no weight, QuantizationMismatch if
    the checkpoint lacks a tensor, and ArtifactVerificationFailed if a merged value is not finite in its type.
    """
    unmatched = sorted(updates.keys() - layout.quantized)
    if unmatched:
        raise StageError(
            Reason.INTERNAL_ERROR,
            f"every adapter matrix must belong to a quantized weight, found {len(unmatched)} that do not: "
            f"{', '.join(unmatched[:3])}",
        )
    done = 0
    for file in layout.files:
        for written in _merge_file(quantized / file.name, file, layout, updates, target / file.name):
            done += written
            progress(done, layout.bytes)


def check_weights(target: Path, layout: BaseLayout) -> None:
    """Check that the written headers list exactly the tensors, types, shapes and order of `layout`, and no 4-bit tensor.

    Raises StageError(ArtifactVerificationFailed) naming the file.
    """
    for file in layout.files:
        found = [(entry.name, entry.dtype, entry.shape) for entry in read_header(target / file.name)]
        expected = [(tensor.name, tensor.dtype, tensor.shape) for tensor in file.tensors]
        if found != expected:
            raise StageError(
                Reason.ARTIFACT_VERIFICATION_FAILED,
                f"{file.name} must hold the base's {len(expected)} tensors with their names, types and shapes, found "
                f"{len(found)} or other ones; report a bug",
            )


def _merge_file(
    source: Path,
    file: WeightFile,
    layout: BaseLayout,
    updates: Mapping[str, LowRankUpdate],
    target: Path,
) -> Iterator[int]:
    """Write one file and yield the bytes of each piece."""
    temporary = target.with_name(f".{target.name}.tmp")
    reader = TensorReader(source)
    entries = {entry.name: entry for entry in reader.entries}
    with temporary.open("wb") as output, safe_open(source, framework="pt") as tensors:
        output.write(_header(file.tensors))
        for tensor in file.tensors:
            entry = entries.get(tensor.name)
            if entry is None:
                raise StageError(
                    Reason.QUANTIZATION_MISMATCH,
                    f"{source.name} must hold tensor {tensor.name}, found none; run PREPARE again",
                )
            module = tensor.name.removesuffix(".weight")
            if module in layout.quantized:
                weight = _dequantize(tensors, entries, tensor.name)
                pieces = _updated(weight, updates.get(module), tensor)
            else:
                pieces = _copied(reader, entry, tensor)
            for piece in pieces:
                yield _write(output, piece)
        output.flush()
        os.fsync(output.fileno())
    temporary.replace(target)


def _header(tensors: tuple[PlannedTensor, ...]) -> bytes:
    """Return the header of a safetensors file with its tensors in this order, padded to align the data."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for tensor in tensors:
        end = offset + tensor.bytes
        header[tensor.name] = {
            "dtype": tensor.dtype,
            "shape": list(tensor.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text = text.ljust(-(-len(text) // 8) * 8)
    return struct.pack("<Q", len(text)) + text


def _dequantize(tensors: Any, entries: Mapping[str, TensorEntry], name: str) -> torch.Tensor:
    """Return the weight as TRAIN used it, in float32: a bf16 weight would be rounded twice."""
    state_names = [key for key in entries if key.startswith(f"{name}.")]
    state = {key: tensors.get_tensor(key) for key in state_names}
    quant_state = QuantState.from_dict(state, device=torch.device("cpu"))
    quant_state.dtype = torch.float32
    return dequantize_4bit(tensors.get_tensor(name), quant_state)


def _updated(
    weight: torch.Tensor, update: LowRankUpdate | None, tensor: PlannedTensor
) -> Iterator[torch.Tensor]:
    rows_at_once = max(1, _ELEMENTS_AT_ONCE // weight.shape[1])
    buffer = torch.empty((min(rows_at_once, weight.shape[0]), weight.shape[1]))
    for first in range(0, weight.shape[0], rows_at_once):
        rows = weight[first : first + rows_at_once]
        block = buffer[: rows.shape[0]]
        block.copy_(rows)
        if update is not None:
            update.apply(block, first)
        merged = block.to(_TYPES[tensor.dtype])
        if not bool(torch.isfinite(merged).all()):
            other = ", or set output.dtype to BFloat16" if tensor.dtype == "F16" else ""
            raise StageError(
                Reason.ARTIFACT_VERIFICATION_FAILED,
                f"merged weights must be finite in the type {tensor.dtype}, found NaN or infinity in {tensor.name}; "
                f"lower training.learningRate{other}",
            )
        yield merged


def _copied(reader: TensorReader, entry: TensorEntry, tensor: PlannedTensor) -> Iterator[torch.Tensor]:
    for _, chunk in reader.chunks(entry, _ELEMENTS_AT_ONCE):
        # The map is read-only, and torch needs writable memory.
        piece = torch.from_numpy(chunk.copy())
        if entry.dtype != tensor.dtype:
            # PREPARE stores floats in bf16, the type of training.
            piece = piece.view(_TYPES[entry.dtype]).to(_TYPES[tensor.dtype])
        yield piece


def _write(output: BinaryIO, piece: torch.Tensor) -> int:
    # numpy's annotations of the buffer protocol begin with Python 3.12.
    array: Any = piece.contiguous().view(torch.uint8).numpy()
    data = memoryview(array).cast("B")
    output.write(data)
    return len(data)
