"""Opens a dataset file as a stream of plain bytes, whatever its compression."""

from __future__ import annotations

import io
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from finetune_trainer.errors import Reason, StageError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

EXPANSION_FACTOR = 20  # text shrinks to a third or a tenth, files of repeated rows to a twentieth
_DEFAULT_MAXIMUM = 1 << 40
_BUFFER = 256 * 1024
_MAGIC_LENGTH = 4
_GZIP = b"\x1f\x8b"
_ZSTD = b"\x28\xb5\x2f\xfd"
_ZSTD_SKIPPABLE = b"\x2a\x4d\x18"  # after a byte 0x50 to 0x5f


class Budget:
    """Counts decompressed bytes against a maximum, by default 2^40.

    PREPARE allows EXPANSION_FACTOR times the limit on the files themselves. A few megabytes that unpack to terabytes
    thus end as DatasetTooLarge. Memory does not depend on the maximum, because rows are streamed.
    """

    def __init__(self, maximum: int = _DEFAULT_MAXIMUM) -> None:
        self._maximum = maximum
        self._left = maximum

    def spend(self, size: int) -> None:
        """Count `size` decompressed bytes. Raises StageError(DatasetTooLarge) if the maximum is exceeded."""
        self._left -= size
        if self._left < 0:
            raise StageError(
                Reason.DATASET_TOO_LARGE,
                f"a dataset must have at most {self._maximum} bytes when decompressed, found more; "
                "use a smaller dataset or raise trainer.limits.datasetBytes in the chart",
            )


class PlainBytes:
    """The decompressed bytes of an open file, buffered. `codec` is None, gzip or zstd."""

    def __init__(self, file: io.BufferedIOBase, raw: io.BufferedIOBase, codec: str | None) -> None:
        self.codec = codec
        self._file = file
        self._raw = raw

    def read(self, size: int) -> bytes:
        """Return up to `size` bytes, b"" at the end."""
        return self._file.read(size)

    def readline(self, size: int) -> bytes:
        """Return the next line or its first `size` bytes."""
        return self._file.readline(size)

    @property
    def position(self) -> int:
        """Bytes of the file itself consumed so far; with a `codec`, exact to the size of its buffer."""
        return self._raw.tell()


@contextmanager
def open_plain(path: Path, budget: Budget) -> Iterator[PlainBytes]:
    """Open a file; gzip with any number of members and zstd with any number of frames are decompressed.

    The content decides, not the name. Reading raises StageError(MalformedDataset) if the compressed data is broken or
    ends early, and StageError(DatasetTooLarge) if `budget` is spent.
    """
    with path.open("rb") as file:
        codec = _codec(file.read(_MAGIC_LENGTH))
        file.seek(0)
        if codec is None:
            yield PlainBytes(file, file, None)
            return
        with io.BufferedReader(_Decompressed(path.name, file, codec, budget), _BUFFER) as buffered:
            yield PlainBytes(buffered, file, codec)


def _codec(magic: bytes) -> str | None:
    if magic.startswith(_GZIP):
        return "gzip"
    if magic == _ZSTD or (magic[1:] == _ZSTD_SKIPPABLE and magic[0] >> 4 == 5):
        return "zstd"
    return None


class _Decompressed(io.RawIOBase):
    """Arrow's streaming decompressor as a raw stream. Unlike other readers, it reports a stream that ends early."""

    def __init__(self, name: str, file: io.BufferedReader, codec: str, budget: Budget) -> None:
        import pyarrow as pa  # noqa: PLC0415 -- costs 0.2 s, and most datasets are plain text

        self._name = name
        self._file = file
        self._codec = codec
        self._budget = budget
        self._stream = pa.CompressedInputStream(pa.PythonFile(file, "r"), codec)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            data = self._stream.read(len(buffer))
        except OSError as error:
            if error.errno is not None:  # an error of the disk, not of the decompressor
                raise
            raise StageError(
                Reason.MALFORMED_DATASET,
                f"{self._name} must be a complete {self._codec} file, found at byte {self._file.tell()}: {error}; "
                "upload it again",
            ) from error
        self._budget.spend(len(data))
        buffer[: len(data)] = data
        return len(data)
