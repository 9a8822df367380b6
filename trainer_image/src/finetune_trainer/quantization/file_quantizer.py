"""Quantizes one weight file: several threads each read, quantize and write pieces of its tensors.

While one thread waits for the disk, the others compute. A piece stays in the processor's cache from reading to writing.
Memory: one piece per thread, and the absmax values of the tensors in progress.
"""

from __future__ import annotations

import threading
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch

from finetune_trainer.errors import Reason, StageError
from finetune_trainer.model.safetensors_file import (
    FLOATS,
    ITEM_BYTES,
    PlannedTensor,
    TensorEntry,
    TensorReader,
    TensorWriter,
)
from finetune_trainer.quantization.nf4 import (
    BLOCK,
    QuantizedSizes,
    first_not_finite,
    quantization_state,
    quantize_bf16,
    to_bf16,
    warm_up,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping
    from pathlib import Path

    from numpy.typing import NDArray

_PIECE = 1024 * 1024  # elements; a multiple of BLOCK
_PIECES_AHEAD = 8  # per thread
_STATE_SUFFIX = "quant_state.bitsandbytes__nf4"
# bf16 bit patterns of infinity and beyond, as the absmax of a block that holds one.
_LARGEST = float(torch.finfo(torch.bfloat16).max)


class _Scratch(threading.local):
    """Buffers of one thread, reused for every piece."""

    def __init__(self) -> None:
        super().__init__()
        self.raw = np.empty(_PIECE * 4, np.uint8)
        self.bits = np.empty(_PIECE, np.uint16)
        self.packed = np.empty(_PIECE // 2, np.uint8)


@dataclass
class _Tensor:
    """A tensor in progress; `absmax` is set only for a quantized tensor."""

    entry: TensorEntry
    absmax: NDArray[np.float32] | None


@dataclass(frozen=True)
class _Piece:
    tensor: _Tensor
    first: int
    elements: int

    @property
    def last(self) -> bool:
        """Whether this is the tensor's last piece."""
        return self.first + self.elements == self.tensor.entry.elements


class FileQuantizer:
    """Quantizes weight files with threads, one file at a time. Use it in a `with` statement."""

    def __init__(self, threads: int) -> None:
        # One more than the CPUs, so that all are busy while one thread waits for the disk.
        self._count = threads + 1
        self._scratch = _Scratch()
        self.threads = ThreadPoolExecutor(self._count, thread_name_prefix="quantize")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.threads.shutdown(cancel_futures=True)

    def quantize(
        self,
        path: Path,
        quantized: Collection[str],
        output: Path,
        advance: Callable[[int], None],
        names: Mapping[str, str] | None = None,
    ) -> list[TensorEntry]:
        """Write `output`: tensors named in `quantized` as NF4, other floats in bf16, all other tensors unchanged.

        With `names`, only its tensors are written, under the names that it gives them, which are also those in `quantized`.
        `advance` gets the number of finished elements. Returns the entries of the file at `path`. Raises
        StageError(InvalidModel) with the position of the first value that is not finite, and as TensorReader does; no
        output file remains then.
        """
        warm_up()
        with TensorReader(path) as reader:
            entries = reader.entries
            if names is not None:
                entries = [replace(entry, name=names[entry.name]) for entry in entries if entry.name in names]
            planned: list[PlannedTensor] = []
            for entry in entries:
                planned.extend(_planned(entry, quantize=entry.name in quantized))
            late = [f"{entry.name}.{_STATE_SUFFIX}" for entry in entries if entry.name in quantized]
            writer = TensorWriter(output, planned, late)
            pending: deque[tuple[Future[None], _Piece]] = deque()
            try:
                self._run(reader, entries, quantized, writer, pending, advance)
            except BaseException:
                for future, _ in pending:
                    future.cancel()
                # The running pieces still write into the file that is removed next.
                wait([future for future, _ in pending])
                writer.abandon()
                raise
            writer.finish()
        return reader.entries

    def _run(
        self,
        reader: TensorReader,
        entries: list[TensorEntry],
        quantized: Collection[str],
        writer: TensorWriter,
        pending: deque[tuple[Future[None], _Piece]],
        advance: Callable[[int], None],
    ) -> None:
        done = 0

        def complete(at_most: int) -> None:
            """Wait until at most `at_most` pieces are pending; the fixed order makes errors reproducible."""
            nonlocal done
            while len(pending) > at_most:
                future, piece = pending[0]
                future.result()
                pending.popleft()
                if piece.last:
                    _write_state(piece.tensor, writer)
                done += piece.elements
                advance(done)

        for entry in entries:
            sizes = QuantizedSizes(entry.elements)
            absmax = np.empty(sizes.blocks, np.float32) if entry.name in quantized else None
            tensor = _Tensor(entry, absmax)
            for first in range(0, entry.elements, _PIECE):
                piece = _Piece(tensor, first, min(_PIECE, entry.elements - first))
                pending.append((self.threads.submit(self._do, piece, reader, writer), piece))
                complete(self._count * _PIECES_AHEAD)
        complete(0)

    def _do(self, piece: _Piece, reader: TensorReader, writer: TensorWriter) -> None:
        """Read, convert and write one piece."""
        tensor, first = piece.tensor, piece.first
        entry = tensor.entry
        item = ITEM_BYTES[entry.dtype]
        if entry.dtype not in FLOATS:
            # An element has up to 8 bytes and the buffer 4 for each, so it may take two passes.
            for start in range(first * item, (first + piece.elements) * item, _PIECE * 4):
                raw = self._scratch.raw[: (first + piece.elements) * item - start]
                reader.read_into(entry, start, raw)
                writer.write(entry.name, start, raw)
            return
        raw = self._scratch.raw[: piece.elements * item]
        reader.read_into(entry, first * item, raw)
        bits = to_bf16(raw, entry.dtype, self._scratch.bits[: piece.elements])
        if tensor.absmax is None:
            _require_finite(entry, first, bits)
            writer.write(entry.name, first * 2, bits.view(np.uint8))
            return
        packed = self._scratch.packed[: QuantizedSizes(piece.elements).packed]
        absmax = tensor.absmax[first // BLOCK : -(-(first + piece.elements) // BLOCK)]
        quantize_bf16(bits, packed, absmax)
        if not float(absmax.max()) <= _LARGEST:
            _require_finite(entry, first, bits)
        writer.write(entry.name, first // 2, packed)


def _planned(entry: TensorEntry, *, quantize: bool) -> list[PlannedTensor]:
    if not quantize:
        return [PlannedTensor(entry.name, "BF16" if entry.dtype in FLOATS else entry.dtype, entry.shape)]
    sizes = QuantizedSizes(entry.elements)
    return [
        PlannedTensor(entry.name, "U8", (sizes.packed, 1)),
        PlannedTensor(f"{entry.name}.absmax", "U8", (sizes.blocks,)),
        PlannedTensor(f"{entry.name}.quant_map", "F32", (16,)),
        PlannedTensor(f"{entry.name}.nested_absmax", "F32", (sizes.nested_blocks,)),
        PlannedTensor(f"{entry.name}.nested_quant_map", "F32", (256,)),
    ]


def _write_state(tensor: _Tensor, writer: TensorWriter) -> None:
    if tensor.absmax is None:
        return
    name = tensor.entry.name
    for suffix, value in quantization_state(tensor.absmax, tensor.entry.shape).items():
        data: Any = value.contiguous().view(torch.uint8).numpy()
        if suffix == _STATE_SUFFIX:
            writer.append(f"{name}.{suffix}", data.tobytes())
        else:
            writer.write(f"{name}.{suffix}", 0, data)
    tensor.absmax = None


def _require_finite(entry: TensorEntry, first: int, bits: NDArray[np.uint16]) -> None:
    index = first_not_finite(bits)
    if index is not None:
        place = [int(extent) for extent in np.unravel_index(first + index, entry.shape or (1,))]
        raise StageError(
            Reason.INVALID_MODEL,
            f"weights must be finite in bf16, found infinity or NaN in tensor {entry.name} at {place}; "
            "the file is damaged or the model overflows bf16",
        )
