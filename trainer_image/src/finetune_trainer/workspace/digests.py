"""Digests of files and folders."""

from __future__ import annotations

import hashlib
import os
from typing import TYPE_CHECKING

from finetune_trainer.workspace.layout import digest_of

if TYPE_CHECKING:
    from collections.abc import Iterable
    from concurrent.futures import Executor
    from pathlib import Path

_PART_BYTES = 32 * 1024 * 1024
_READ_BYTES = 1024 * 1024
_SAMPLES = 64
_SAMPLE_BYTES = 4096


def file_digest(path: Path) -> str:
    """`sha256:` digest of a file's bytes."""
    with path.open("rb") as file:
        return "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()


def folder_digests(folder: Path) -> dict[str, str]:
    """Digest of every file in `folder` (no subfolders), by name."""
    return {path.name: file_digest(path) for path in sorted(folder.iterdir()) if path.is_file()}


def digest_of_files(digests: dict[str, str]) -> str:
    """Digest over the sorted list of (file name, file digest)."""
    return digest_of(sorted(digests.items()))


def parts_digest(path: Path, threads: Executor) -> str:
    """Return the digest over the sha256 of each 32 MiB of a file, which `threads` compute in parallel.

    On one core, the sha256 of a large file takes longer than its quantization on two cores.
    """
    size = path.stat().st_size
    parts = list(threads.map(lambda start: _part_digest(path, start), range(0, size, _PART_BYTES)))
    return digest_of([size, *parts])


def weights_digest(folder: Path, names: Iterable[str], threads: Executor) -> str:
    """Return the digest over names and `parts_digest` of the files `names` in `folder`, as PREPARE reports it."""
    return digest_of({name: parts_digest(folder / name, threads) for name in names})


def sampled_digest(path: Path) -> str:
    """Return the digest over 64 evenly spaced pieces of a file, with its first and last bytes."""
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        last = max(0, path.stat().st_size - _SAMPLE_BYTES)
        for number in range(_SAMPLES):
            digest.update(os.pread(file.fileno(), _SAMPLE_BYTES, last * number // (_SAMPLES - 1)))
    return "sha256:" + digest.hexdigest()


def _part_digest(path: Path, start: int) -> str:
    digest = hashlib.sha256()
    view = memoryview(bytearray(_READ_BYTES))
    with path.open("rb", buffering=0) as file:
        for position in range(start, start + _PART_BYTES, _READ_BYTES):
            count = os.preadv(file.fileno(), [view], position)
            digest.update(view[:count])
    return digest.hexdigest()
