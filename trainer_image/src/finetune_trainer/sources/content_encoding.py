"""Content codings that a server may apply to a file although the request asks for none."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable
from pathlib import Path

from finetune_trainer.errors import StageError
from finetune_trainer.sources.fetch_target import DATASET, FetchTarget

_MAGIC = b"\x1f\x8b"
_CHUNK_BYTES = 1 << 20
# `aws-chunked` describes only how the object was uploaded; the stored bytes are not coded.
_NONE = frozenset({"", "identity", "aws-chunked"})
_GZIP = frozenset({"gzip", "x-gzip"})


def coding_of(content_encoding: str, target: FetchTarget = DATASET) -> str:
    """Return "gzip" or "" for a Content-Encoding field. Raises StageError (unavailable) for any other."""
    codings = [coding.strip().lower() for coding in content_encoding.split(",")]
    codings = [coding for coding in codings if coding not in _NONE]
    if not codings:
        return ""
    if len(codings) > 1 or codings[0] not in _GZIP:
        raise StageError(
            target.unavailable,
            f"the {target.name}'s server must send the file without content coding or with gzip, found another "
            "Content-Encoding; store the file without one",
        )
    return "gzip"


def decode_file(
    path: Path,
    inspect: Callable[[bytes], None],
    require_size: Callable[[int], None],
    target: FetchTarget = DATASET,
) -> None:
    """Decompress a gzip file in place. A file that is not gzip stays: its header was wrong.

    `inspect` receives the first bytes, `require_size` the number of bytes so far; both may raise. Raises
    StageError with the target's malformed reason if the coding is broken.
    """
    decoded = path.with_name(f"{path.name}.decoded")
    with path.open("rb") as raw:
        if raw.read(len(_MAGIC)) != _MAGIC:
            return
        raw.seek(0)
        size = 0
        try:
            with gzip.GzipFile(fileobj=raw) as stream, decoded.open("wb") as out:
                while chunk := stream.read(_CHUNK_BYTES):
                    if size == 0:
                        inspect(chunk)
                    size += len(chunk)
                    require_size(size)
                    out.write(chunk)
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise StageError(
                target.malformed,
                f"a response with Content-Encoding gzip must be valid gzip, found: {error}; store the file again",
            ) from error
    decoded.replace(path)


def decode_beginning(beginning: bytes, size: int) -> bytes:
    """Return at most `size` bytes of an error body. Gzip is decompressed; broken gzip gives b""."""
    if not beginning.startswith(_MAGIC):
        return beginning[:size]
    try:
        return zlib.decompressobj(wbits=31).decompress(beginning, size)
    except zlib.error:
        return b""
