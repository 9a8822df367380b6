"""Reads what the reader's pod has printed: a line of JSON with size and digest, then the content."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

FRAME = "finetune-kept/1"


@dataclass(frozen=True)
class Kept:
    """What the pod has found. `content` is None if it has no such file; `logs` names the logs that it has."""

    content: bytes | None
    logs: tuple[str, ...]
    error: str = ""


class FrameError(Exception):
    """The output is no whole frame. The message says what is wrong with it."""


def read_frame(output: bytes) -> Kept:
    """Find the frame in the log of a pod, and check that it is whole. Raises FrameError.

    Lines before it are those of the runtime or of an injected container.
    """
    lines = output.split(b"\n")
    for number, line in enumerate(lines):
        head = _head(line)
        if head is not None:
            return _read(head, b"\n".join(lines[number + 1 :]))
    shown = output.decode("utf-8", "replace").strip().splitlines()
    raise FrameError(f"it printed {shown[-1][:200]!r}" if shown else "it printed nothing")


def _head(line: bytes) -> dict[str, Any] | None:
    if FRAME.encode() not in line:
        return None
    try:
        document = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return document if isinstance(document, dict) and document.get("frame") == FRAME else None


def _read(head: dict[str, Any], rest: bytes) -> Kept:
    listed = head.get("logs")
    logs = tuple(str(name) for name in listed) if isinstance(listed, list) else ()
    size = head.get("bytes")
    if not isinstance(size, int):
        return Kept(None, logs, str(head.get("error") or ""))
    content = rest[:size]
    if hashlib.sha256(content).hexdigest() != head.get("sha256"):
        raise FrameError(f"it printed {len(rest):,} of {size:,} bytes, or others were mixed in")
    return Kept(content, logs)
