"""Writes one weight file: threads compute and write its pieces, and the digest is taken in the order of the bytes.

While one thread waits for the disk, the others compute. Memory: a few pieces, whatever the size of a tensor.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
import threading
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, Self

import numpy as np

from finetune_trainer.errors import Reason, StageError
from finetune_trainer.model.safetensors_file import ITEM_BYTES
from finetune_trainer.quantization import dequantize, low_rank, rounding
from finetune_trainer.quantization.dequantize import Scratch
from finetune_trainer.stages.merge.journal import FileRecord

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from hashlib import _Hash as Hash
    from pathlib import Path

    from numpy.typing import NDArray

    from finetune_trainer.model.safetensors_file import PlannedTensor

_PIECE_BYTES = 8 * 1024 * 1024
_PIECES_AHEAD = 3  # per thread: one is computed, one waits for the digest, one waits for the disk


class TensorSource(Protocol):
    """Where the values of one tensor come from."""

    @property
    def step(self) -> int:
        """Elements of which a piece has a multiple."""

    def fill(self, first: int, out: NDArray[np.uint8], scratch: Scratch) -> bool:
        """Write the tensor's bytes from element `first` on into the whole of `out`; return whether they are finite.

        Several threads may call it.
        """


@dataclass(frozen=True)
class _Piece:
    tensor: PlannedTensor
    first: int
    bytes: int
    position: int


class _ThreadScratch(threading.local):
    def __init__(self) -> None:
        super().__init__()
        self.scratch = Scratch()


class FileWriter:
    """Writes weight files with `threads` threads, one file at a time. Use it in a `with` statement."""

    def __init__(self, threads: int) -> None:
        # One more than the CPUs, so that all are busy while one thread waits for the disk.
        self._count = threads + 1
        self._threads = ThreadPoolExecutor(self._count, thread_name_prefix="merge")
        self._local = _ThreadScratch()
        self._buffers: list[NDArray[np.uint8]] = []

    def __enter__(self) -> Self:
        for module in (dequantize, low_rank, rounding):
            module.warm_up()
        return self

    def __exit__(self, *_exception: object) -> None:
        self._threads.shutdown(cancel_futures=True)

    def write(
        self,
        path: Path,
        tensors: tuple[PlannedTensor, ...],
        source: Callable[[PlannedTensor], TensorSource],
        advance: Callable[[int], None],
    ) -> FileRecord:
        """Write the file at `path`, complete on the disk, and return its record; `advance` gets the bytes of each piece.

        `source` is called once for each tensor, in order. Raises StageError(ArtifactVerificationFailed) if a value is
        not finite in its type; no file remains then.
        """
        temporary = path.with_name(f".{path.name}.tmp")
        header = _header(tensors)
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
        try:
            _write_at(descriptor, memoryview(header), 0)
            digest = hashlib.sha256(header)
            self._write_pieces(descriptor, len(header), tensors, source, digest, advance)
            os.fsync(descriptor)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        finally:
            os.close(descriptor)
        temporary.replace(path)
        size = len(header) + sum(tensor.bytes for tensor in tensors)
        return FileRecord(size, f"sha256:{digest.hexdigest()}")

    def _write_pieces(
        self,
        descriptor: int,
        position: int,
        tensors: tuple[PlannedTensor, ...],
        source: Callable[[PlannedTensor], TensorSource],
        digest: Hash,
        advance: Callable[[int], None],
    ) -> None:
        pending: deque[tuple[Future[bool], _Piece, NDArray[np.uint8]]] = deque()

        def complete(at_most: int) -> None:
            """Wait until at most `at_most` pieces are pending; the fixed order makes digest and errors fixed."""
            while len(pending) > at_most:
                future, piece, buffer = pending[0]
                finite = future.result()
                pending.popleft()
                if not finite:
                    raise _not_finite(piece.tensor)
                digest.update(buffer[: piece.bytes].data)
                self._buffers.append(buffer)
                advance(piece.bytes)

        try:
            for tensor in tensors:
                values = source(tensor)
                for piece in _pieces(tensor, values.step, position):
                    complete(self._count * _PIECES_AHEAD - 1)
                    buffer = self._buffer(piece.bytes)
                    future = self._threads.submit(self._do, values, piece, buffer, descriptor)
                    pending.append((future, piece, buffer))
                position += tensor.bytes
            complete(0)
        except BaseException:
            for future, *_ in pending:
                future.cancel()
            # The running pieces still write into the file that is closed next.
            wait([future for future, *_ in pending])
            raise

    def _buffer(self, size: int) -> NDArray[np.uint8]:
        buffer = self._buffers.pop() if self._buffers else np.empty(0, np.uint8)
        return buffer if buffer.size >= size else np.empty(max(size, _PIECE_BYTES), np.uint8)

    def _do(self, values: TensorSource, piece: _Piece, buffer: NDArray[np.uint8], descriptor: int) -> bool:
        out = buffer[: piece.bytes]
        finite = values.fill(piece.first, out, self._local.scratch)
        if finite:
            _write_at(descriptor, out.data.cast("B"), piece.position)
            # The kernel begins to write it to the disk now. Otherwise all of a file would wait for its end.
            os.posix_fadvise(descriptor, piece.position, piece.bytes, os.POSIX_FADV_DONTNEED)
        return finite


def _pieces(tensor: PlannedTensor, step: int, position: int) -> Iterator[_Piece]:
    item = ITEM_BYTES[tensor.dtype]
    size = max(1, _PIECE_BYTES // (step * item)) * step * item
    for start in range(0, tensor.bytes, size):
        yield _Piece(tensor, start // item, min(size, tensor.bytes - start), position + start)


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


def _write_at(descriptor: int, view: memoryview, position: int) -> None:
    while view:
        written = os.pwrite(descriptor, view, position)
        view = view[written:]
        position += written


def _not_finite(tensor: PlannedTensor) -> StageError:
    other = ", or set output.dtype to BFloat16" if tensor.dtype == "F16" else ""
    return StageError(
        Reason.ARTIFACT_VERIFICATION_FAILED,
        f"merged weights must be finite in the type {tensor.dtype}, found NaN or infinity in {tensor.name}; "
        f"lower training.learningRate{other}",
    )
