"""The last word of a stage: contract/result.schema.json, within the size of a termination message."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from finetune_trainer.clock import rfc3339
from finetune_trainer.contract import CONTRACT_VERSION
from finetune_trainer.exitcodes import ExitCode, exit_code

if TYPE_CHECKING:
    from datetime import datetime

    from finetune_trainer.errors import Reason
    from finetune_trainer.telemetry import Identity

MAXIMUM_BYTES = 4096
MAXIMUM_MESSAGE = 1024
MAXIMUM_LOG_LINE = 256
MAXIMUM_LOG_LINES = 20
_TRIMMED_MESSAGE = 400
_TRIMMED_TEXT = 120


@dataclass(frozen=True)
class Outcome:
    """How a stage ended: with `members` (its part of the result), or with a reason and a message."""

    members: dict[str, Any]
    reason: Reason | None = None
    message: str = ""

    @property
    def name(self) -> str:
        """`Succeeded`, `Failed` or `Interrupted`."""
        if self.reason is None:
            return "Succeeded"
        return "Interrupted" if self.code is ExitCode.INTERRUPTED else "Failed"

    @property
    def code(self) -> ExitCode:
        """Exit code of the process."""
        return exit_code(self.reason)


def result_document(
    identity: Identity,
    outcome: Outcome,
    *,
    started: datetime,
    completed: datetime,
    peak_memory_bytes: int | None,
    log_tail: list[str],
) -> dict[str, Any]:
    """Compose the result; `log_tail` is carried only by a failure."""
    document: dict[str, Any] = {
        "version": CONTRACT_VERSION,
        "uid": identity.uid,
        "stage": identity.stage,
        "attempt": identity.attempt,
        "outcome": outcome.name,
        "startTime": rfc3339(started),
        "completionTime": rfc3339(completed),
        "peakMemoryBytes": peak_memory_bytes,
        **outcome.members,
    }
    if outcome.reason is not None:
        document["reason"] = outcome.reason.value
        document["message"] = shorten(outcome.message, MAXIMUM_MESSAGE)
        document["logTail"] = [shorten(line, MAXIMUM_LOG_LINE) for line in log_tail[-MAXIMUM_LOG_LINES:]]
    return document


def encode_result(document: dict[str, Any], maximum_bytes: int = MAXIMUM_BYTES) -> bytes:
    """Encode as UTF-8 JSON of at most `maximum_bytes`, giving up the least needed text first.

    Order of loss: oldest log lines, the message's end, warnings, then long texts inside the stage's member.
    Raises ValueError for a number that is not finite, or if nothing is left to give up.
    """
    document = copy.deepcopy(document)
    encoded = _encode(document)
    log_tail = document.get("logTail", [])
    while len(encoded) > maximum_bytes and log_tail:
        del log_tail[0]
        encoded = _encode(document)
    if len(encoded) > maximum_bytes and "message" in document:
        document["message"] = shorten(document["message"], _TRIMMED_MESSAGE)
        encoded = _encode(document)
    warnings = document.get("prepare", {}).get("dataset", {}).get("warnings", [])
    while len(encoded) > maximum_bytes and warnings:
        warnings.pop()
        encoded = _encode(document)
    if len(encoded) > maximum_bytes:
        document = _shorten_texts(document)
        encoded = _encode(document)
    if len(encoded) > maximum_bytes:
        raise ValueError(f"a result must fit into {maximum_bytes} bytes, found {len(encoded)} after trimming")
    return encoded


def shorten(text: str, maximum: int) -> str:
    """Cut `text` to `maximum` characters, marking the cut."""
    return text if len(text) <= maximum else text[: maximum - 3] + "..."


def _encode(document: dict[str, Any]) -> bytes:
    text = json.dumps(document, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    # Lone surrogates cannot be written as UTF-8; they come from broken text in a row.
    return text.encode("utf-8", errors="replace")


def _shorten_texts(value: Any) -> Any:
    if isinstance(value, str):
        return shorten(value, _TRIMMED_TEXT)
    if isinstance(value, list):
        return [_shorten_texts(item) for item in value]
    if isinstance(value, dict):
        return {key: _shorten_texts(item) for key, item in value.items()}
    return value
