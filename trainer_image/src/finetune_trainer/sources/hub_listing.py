"""A hub's description of a repository at one revision: its commit, and its files with their sizes and digests."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

COMMIT = re.compile(r"[0-9a-f]{7,64}")
_SHA1 = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_LONGEST_NAME_BYTES = 200  # a partial download adds to a file's name


class UnexpectedListingError(Exception):
    """The document does not follow the hub's API."""


@dataclass(frozen=True)
class HubFile:
    """A file of a repository. `size` is in bytes; `digest` is `sha256:` or `git:` with hex digits. None if not known."""

    size: int | None
    digest: str | None


@dataclass(frozen=True)
class Listing:
    """A repository. `commit` is None if the hub does not name it."""

    commit: str | None
    files: Mapping[str, HubFile]

    def content_digest(self) -> str:
        """A SHA-256 over names, sizes and digests, in hex. It stands for the commit if there is none."""
        content = [[name, file.size, file.digest] for name, file in sorted(self.files.items())]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def parse_listing(body: bytes) -> Listing:
    """Parse the document. Files whose name leads out of a folder are left out. Raises UnexpectedListingError."""
    try:
        document = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise UnexpectedListingError from error
    if not isinstance(document, dict):
        raise UnexpectedListingError
    commit, siblings = document.get("sha"), document.get("siblings")
    if not (commit is None or (isinstance(commit, str) and COMMIT.fullmatch(commit))):
        raise UnexpectedListingError
    if not isinstance(siblings, list) or not all(isinstance(item, dict) for item in siblings):
        raise UnexpectedListingError
    return Listing(
        commit, {item["rfilename"]: _file(item) for item in siblings if _is_inside(item.get("rfilename"))}
    )


def file_digest(path: Path, kind: str) -> str:
    """Return a file's digest as `HubFile.digest` writes it; `kind` is `sha256` or `git` (a Git blob's SHA-1)."""
    digest = hashlib.sha256() if kind == "sha256" else hashlib.sha1(usedforsecurity=False)
    if kind == "git":
        digest.update(b"blob %d\0" % path.stat().st_size)
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return f"{kind}:{digest.hexdigest()}"


def digest_of_etag(etag: str) -> str | None:
    """Return the SHA-256 that a hub's `X-Linked-ETag` is for a large file; None for any other text."""
    plain = etag.strip().removeprefix("W/").strip('"').lower()
    return f"sha256:{plain}" if _SHA256.fullmatch(plain) else None


def _file(item: Mapping[str, Any]) -> HubFile:
    large = item.get("lfs")
    large = large if isinstance(large, dict) else {}
    size = next((size for size in (large.get("size"), item.get("size")) if _is_size(size)), None)
    sha256, blob = large.get("sha256") or large.get("oid"), item.get("blobId")
    if isinstance(sha256, str) and _SHA256.fullmatch(plain := sha256.removeprefix("sha256:").lower()):
        return HubFile(size, f"sha256:{plain}")
    # Of a large file, the blob is a pointer and not the content.
    if not large and isinstance(blob, str) and _SHA1.fullmatch(blob):
        return HubFile(size, f"git:{blob}")
    return HubFile(size, None)


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_inside(name: Any) -> bool:
    """Return whether a file's name stays below the folder that it is written to."""
    return (
        isinstance(name, str)
        and bool(name)
        and "\\" not in name
        and "\0" not in name
        and all(
            part not in {"", ".", ".."} and len(os.fsencode(part)) <= _LONGEST_NAME_BYTES
            for part in name.split("/")
        )
    )
