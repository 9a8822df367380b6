"""Files as layers of a registry: one uncompressed tar for each file, which every container runtime can unpack.

The same file always gives the same bytes: owner 0, mode 0644, no times. Folders of the path have entries of their own, so
that their mode follows from no umask. Format: POSIX.1-2001 (pax), for names of more than 100 bytes and files of more
than 8 GiB.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import tarfile
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, BinaryIO

from finetune_trainer.destinations.local_artifact import damaged
from finetune_trainer.workspace.destination import MANIFEST
from finetune_trainer.workspace.layout import write_json_atomically

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from finetune_trainer.destinations.local_artifact import LocalArtifact
    from finetune_trainer.destinations.publisher import OnBytes

_log = logging.getLogger(__name__)
_CHUNK_BYTES = 1 << 20
_END = bytes(2 * tarfile.BLOCKSIZE)
_LARGEST_MANIFEST = 64 << 20


@dataclass(frozen=True)
class TarLayer:
    """A tar with one file. `digest` and `size` are those of the tar, `content_size` is that of the file. Sizes are in bytes."""

    name: str
    digest: str
    size: int
    content_size: int
    _open: Callable[[], BinaryIO] = field(repr=False)

    def chunks(self, on_sent: OnBytes) -> Iterator[bytes]:
        """Yield the tar's bytes; `on_sent` hears how much of the file has been taken."""
        sent = 0
        for chunk, counted in _pieces(self.name, self.content_size, self._open):
            sent += counted
            on_sent(sent)
            yield chunk


class LayerDigests:
    """Digests of the tars by name and digest of their file, in a file of the workspace.

    Otherwise each try would read all files again. A file that cannot be read or written only costs time. A wrong digest
    does no harm: the registry compares it with the bytes that arrive.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known = self._read()

    def get(self, name: str, digest: str) -> str | None:
        """Return the tar's digest if it is known."""
        found = self._known.get(f"{digest} {name}")
        return found if isinstance(found, str) else None

    def record(self, name: str, digest: str, layer: str) -> None:
        """Remember the tar's digest."""
        self._known[f"{digest} {name}"] = layer
        try:
            write_json_atomically(self._path, self._known)
        except OSError as error:
            _log.warning(
                "the digests of layers cannot be kept, so another attempt reads the files again: %s", error
            )

    def _read(self) -> dict[str, Any]:
        try:
            document = json.loads(self._path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return document if isinstance(document, dict) else {}


def make_layers(artifact: LocalArtifact, known: LayerDigests, on_read: Callable[[], None]) -> list[TarLayer]:
    """Return the layers of all files, the manifest's last. `on_read` hears while files are read.

    Raises StageError(ArtifactVerificationFailed) if a file is not the one that MERGE verified.
    """
    layers = []
    for file in artifact.files:

        def opened(path: Path = file.path) -> BinaryIO:
            return path.open("rb")

        digest = known.get(file.name, file.digest)
        if digest is None:
            digest, content = _digests(file.name, file.bytes, opened, on_read)
            if content != file.digest:
                raise damaged(file.name)
            known.record(file.name, file.digest, digest)
        layers.append(TarLayer(file.name, digest, _size(file.name, file.bytes), file.bytes, opened))

    def manifest() -> BinaryIO:
        return io.BytesIO(artifact.manifest)

    size = len(artifact.manifest)
    digest, _ = _digests(MANIFEST, size, manifest, on_read)
    return [*layers, TarLayer(MANIFEST, digest, _size(MANIFEST, size), size, manifest)]


def unpack_manifest(layer: bytes) -> bytes:
    """Return the artifacts' manifest from its layer; nothing if somebody has pushed another thing there."""
    try:
        with tarfile.open(fileobj=io.BytesIO(layer), mode="r:") as archive:
            member = archive.getmember(MANIFEST)
            file = archive.extractfile(member) if member.size <= _LARGEST_MANIFEST else None
            return b"" if file is None else file.read()
    except (tarfile.TarError, KeyError):
        return b""


def _pieces(name: str, size: int, opened: Callable[[], BinaryIO]) -> Iterator[tuple[bytes, int]]:
    """Yield the bytes of a tar, each with the count of the file's own bytes in it."""
    yield _head(name, size), 0
    with opened() as content:
        while chunk := content.read(_CHUNK_BYTES):
            yield chunk, len(chunk)
    yield bytes(-size % tarfile.BLOCKSIZE) + _END, 0


def _head(name: str, size: int) -> bytes:
    parts = name.split("/")
    entries = []
    for depth in range(1, len(parts)):
        folder = tarfile.TarInfo("/".join(parts[:depth]))
        folder.type, folder.mode = tarfile.DIRTYPE, 0o755
        entries.append(folder)
    file = tarfile.TarInfo(name)
    file.size, file.mode = size, 0o644
    return b"".join(entry.tobuf(tarfile.PAX_FORMAT, "utf-8", "strict") for entry in (*entries, file))


def _size(name: str, size: int) -> int:
    return len(_head(name, size)) + size + -size % tarfile.BLOCKSIZE + len(_END)


def _digests(
    name: str, size: int, opened: Callable[[], BinaryIO], on_read: Callable[[], None]
) -> tuple[str, str]:
    """Return the `sha256:` digests of the tar and of the file in it."""
    whole, content = hashlib.sha256(), hashlib.sha256()
    for chunk, counted in _pieces(name, size, opened):
        whole.update(chunk)
        if counted:
            content.update(chunk)
        on_read()
    return f"sha256:{whole.hexdigest()}", f"sha256:{content.hexdigest()}"
