"""The files of a checkpoint, in the form that transformers' Trainer reads, with digests taken while they are written."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import struct
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Self

import torch
from transformers import TrainerState

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from concurrent.futures import Executor, Future
    from pathlib import Path

    from finetune_trainer.stages.train.snapshot import Snapshot

ADAPTER, OPTIMIZER, SCHEDULER = "adapter_model.safetensors", "optimizer.pt", "scheduler.pt"
RANDOMNESS, STATE, RUN = "rng_state.pth", "trainer_state.json", "run.json"
REQUIRED = frozenset({ADAPTER, OPTIMIZER, SCHEDULER, RANDOMNESS, STATE})
"""Files without which a resume is not exact. Trainers before contract 1.5 wrote no RUN."""

_PIECE = 8 << 20
_TYPES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.float64: "F64"}


def write_files(folder: Path, snapshot: Snapshot, run: Mapping[str, Any]) -> dict[str, str]:
    """Write all files of a checkpoint durably into `folder`; return the `sha256:` digest of each one.

    Raises OSError if a file cannot be written.
    """
    state = {field.name: snapshot.state.get(field.name) for field in dataclasses.fields(TrainerState)}
    writers: dict[str, Callable[[DigestingFile], object]] = {
        ADAPTER: lambda file: _write_tensors(file, snapshot.adapter),
        OPTIMIZER: lambda file: torch.save(snapshot.optimizer, file),  # type: ignore[arg-type]  # it needs no more methods
        SCHEDULER: lambda file: torch.save(snapshot.scheduler, file),  # type: ignore[arg-type]  # see above
        RANDOMNESS: lambda file: torch.save(snapshot.randomness, file),  # type: ignore[arg-type]  # see above
        STATE: lambda file: file.write(json.dumps(state, sort_keys=True).encode()),
        RUN: lambda file: file.write(json.dumps(dict(run), sort_keys=True).encode()),
    }

    def write(name: str) -> str:
        with DigestingFile(folder / name) as file:
            writers[name](file)
        return file.digest

    # The two large files take the time, and digests and writes release the interpreter's lock.
    with ThreadPoolExecutor(1, "checkpoint-file") as beside:
        adapter = _started(beside, write, ADAPTER)
        digests = {name: write(name) for name in writers if name != ADAPTER}
        return {ADAPTER: write(ADAPTER) if adapter is None else adapter.result(), **digests}


def _started(threads: Executor, write: Callable[[str], str], name: str) -> Future[str] | None:
    """Begin to write a file in another thread; None if the container may start no more threads."""
    try:
        return threads.submit(write, name)
    except RuntimeError:
        return None


class DigestingFile:
    """A new file that takes the digest of what it writes, and that is on the disk when its `with` block has ended.

    `write` never raises, because torch's writer ends the process if it fails twice. The end of the block raises the
    first error.
    """

    def __init__(self, path: Path) -> None:
        self._sha256 = hashlib.sha256()
        self._error: OSError | None = None
        self._file = path.open("wb", buffering=0)

    @property
    def digest(self) -> str:
        """`sha256:` digest of the bytes so far."""
        return f"sha256:{self._sha256.hexdigest()}"

    def write(self, data: bytes | memoryview) -> int:
        """Write all of `data`, or nothing after an earlier error; return its size."""
        rest = memoryview(data).cast("B")
        size = len(rest)
        try:
            while rest and self._error is None:
                # Pieces are digested while the processor's cache still holds them.
                piece = rest[:_PIECE]
                written = self._file.write(piece)
                self._sha256.update(piece[:written])
                rest = rest[written:]
        except OSError as error:
            self._error = error
        return size

    def flush(self) -> None:
        """Do nothing: nothing is buffered."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_exception: object) -> None:
        with self._file:
            if self._error is not None:
                raise self._error
            if kind is None:
                os.fsync(self._file.fileno())


def _write_tensors(file: DigestingFile, tensors: Mapping[str, torch.Tensor]) -> None:
    """Write the safetensors format; the library itself would copy all tensors once more."""
    # Wide types come first, which aligns every tensor to its type.
    names = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name in names:
        tensor = tensors[name]
        end = offset + tensor.nbytes
        header[name] = {
            "dtype": _TYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text = text.ljust(-(-len(text) // 8) * 8)
    file.write(struct.pack("<Q", len(text)) + text)
    for name in names:
        file.write(tensors[name].contiguous().reshape(-1).view(torch.uint8).numpy().data)
