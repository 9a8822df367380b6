"""Megabytes per second of PREPARE's quantizing, of bitsandbytes on the same tensors, and of a copy of the same bytes."""

from __future__ import annotations

import os
import resource
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import bitsandbytes.functional
import numpy as np
import torch
from finetune_trainer.model.safetensors_file import PlannedTensor, TensorWriter
from finetune_trainer.quantization.file_quantizer import FileQuantizer
from finetune_trainer.quantization.nf4 import QuantizedSizes, quantization_state, quantize_bf16, warm_up

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_ROWS, _COLUMNS = 4096, 8192
_PIECE = 2 * 1024 * 1024


@dataclass(frozen=True)
class Speed:
    """MB (10^6 bytes) of bf16 input per second, and milliseconds of CPU time per MB."""

    megabytes_per_second: float
    processor_milliseconds: float


def write_weights(path: Path, megabytes: int) -> list[str]:
    """Write a file of normally distributed bf16 weights of 67 MB each; return their names."""
    names = [
        f"layers.{number}.weight" for number in range(max(1, megabytes * 10**6 // (_ROWS * _COLUMNS * 2)))
    ]
    writer = TensorWriter(path, [PlannedTensor(name, "BF16", (_ROWS, _COLUMNS)) for name in names], [])
    generator = torch.Generator().manual_seed(1)
    for name in names:
        weights = (torch.randn((_ROWS, _COLUMNS), generator=generator) * 0.02).to(torch.bfloat16)
        writer.write(name, 0, weights.view(torch.uint8).numpy().reshape(-1))
    writer.finish()
    return names


def measured(size: int, action: Callable[[], None]) -> Speed:
    """Time one call that handles `size` bytes."""
    before, start = _processor_seconds(), time.perf_counter()
    action()
    seconds, processor = time.perf_counter() - start, _processor_seconds() - before
    return Speed(size / seconds / 1e6, processor * 1e3 / (size / 1e6))


def _processor_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def copy(source: Path, target: Path) -> None:
    """Copy a file through a buffer, like `cp`, and flush it to disk."""
    buffer = memoryview(bytearray(_PIECE))
    with source.open("rb", buffering=0) as file, target.open("wb", buffering=0) as output:
        while count := file.readinto(buffer):
            output.write(buffer[:count])
        os.fsync(output.fileno())


def read(source: Path) -> None:
    """Read a whole file, so later reads come from memory."""
    buffer = memoryview(bytearray(_PIECE))
    with source.open("rb", buffering=0) as file:
        while file.readinto(buffer):
            pass


def speeds(folder: Path, megabytes: int, threads: int) -> Iterator[tuple[str, Speed]]:
    """Yield each measurement, all with the same weights."""
    source = folder / "weights.safetensors"
    names = write_weights(source, megabytes)
    size = source.stat().st_size
    torch.set_num_threads(threads)
    warm_up()
    read(source)
    with FileQuantizer(threads) as quantizer:
        yield (
            "quantize a file (read, NF4, double quantization, write, flush)",
            measured(size, lambda: _discard(quantizer, source, names, folder / "quantized")),
        )
    yield "copy the file (read, write, flush)", measured(size, lambda: copy(source, folder / "copy"))
    (folder / "copy").unlink()
    weights = (torch.randn((_ROWS, _COLUMNS)) * 0.02).to(torch.bfloat16)
    yield "quantize in memory, one thread", measured(weights.nbytes, lambda: _quantize_in_memory(weights))
    yield (
        f"bitsandbytes in memory, {threads} threads",
        measured(weights.nbytes, lambda: _bitsandbytes(weights)),
    )


def _discard(quantizer: FileQuantizer, source: Path, names: list[str], output: Path) -> None:
    quantizer.quantize(source, set(names), output, lambda _done: None)


def _quantize_in_memory(weights: torch.Tensor) -> None:
    bits: Any = weights.view(torch.uint16).numpy().reshape(-1)
    sizes = QuantizedSizes(bits.size)
    absmax = np.empty(sizes.blocks, np.float32)
    quantize_bf16(bits, np.empty(sizes.packed, np.uint8), absmax)
    quantization_state(absmax, tuple(weights.shape))


def _bitsandbytes(weights: torch.Tensor) -> None:
    functions: Any = bitsandbytes.functional
    functions.quantize_4bit(weights, blocksize=64, compress_statistics=True, quant_type="nf4")
