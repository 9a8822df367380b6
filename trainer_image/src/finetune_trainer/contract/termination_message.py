"""A result as the termination message that the kubelet reads: at most 4,096 bytes of JSON.

A longer result loses text in a fixed order (`_CONCESSIONS`); outcome, reason and numbers stay.
"""

from __future__ import annotations

import copy
import json
from typing import Any

from finetune_trainer.contract.bounds import shorten

MAXIMUM_BYTES = 4096
_TRIMMED_MESSAGE = 400
_TRIMMED_TEXT = 120


def encode_result(document: dict[str, Any], maximum_bytes: int = MAXIMUM_BYTES) -> bytes:
    """Encode as UTF-8 JSON of at most `maximum_bytes`; the least needed text goes first (`_CONCESSIONS`).

    Raises ValueError for a number that is not finite, or if the result stays too long without all these texts.
    """
    document = copy.deepcopy(document)
    encoded = _encode(document)
    for concede in _CONCESSIONS:
        while len(encoded) > maximum_bytes and concede(document):
            encoded = _encode(document)
    if len(encoded) > maximum_bytes:
        raise ValueError(f"a result must fit into {maximum_bytes} bytes, found {len(encoded)} after trimming")
    return encoded


def _encode(document: Any) -> bytes:
    text = json.dumps(document, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    # Lone surrogates cannot be written as UTF-8; they come from broken text in a row.
    return text.encode("utf-8", errors="replace")


def _dataset_of(document: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = document.get("prepare", {}).get("dataset", {})
    return found


def _drop_oldest_log_line(document: dict[str, Any]) -> bool:
    lines = document.get("logTail")
    if not lines:
        return False
    del lines[0]
    return True


def _cut_message(document: dict[str, Any]) -> bool:
    return _cut(document, "message", _TRIMMED_MESSAGE)


def _cut_samples(document: dict[str, Any]) -> bool:
    """Shorten the samples: a person also finds them in the report of the workspace or the artifact."""
    dataset, completed = _dataset_of(document), document.get("completed", {})
    verifications = [part.get("merge", {}).get("verification") for part in (document, completed)]
    samples = [
        (dataset.get("example"), "learned"),
        (dataset.get("format"), "why"),
        *((verification, key) for verification in verifications for key in ("prompt", "answer")),
    ]
    cut = [_cut(holder, key, _TRIMMED_TEXT) for holder, key in samples if holder]
    cut += [_cut(identity, key, _TRIMMED_TEXT) for identity in _identities(dataset) for key in identity]
    return any(cut)


def _cut_warnings(document: dict[str, Any]) -> bool:
    """Shorten the message of the last long warning; its code and numbers stay."""
    warnings = _dataset_of(document).get("warnings", [])
    return any(
        _cut(warning, "message", _TRIMMED_TEXT) for warning in reversed(warnings) if isinstance(warning, dict)
    )


def _drop_last_warning(document: dict[str, Any]) -> bool:
    warnings = _dataset_of(document).get("warnings")
    if not warnings:
        return False
    warnings.pop()
    return True


def _drop_identities(document: dict[str, Any]) -> bool:
    dataset = _dataset_of(document)
    identities = [dataset.pop(name, None) for name in ("validationSource", "source")]
    return any(identity is not None for identity in identities)


def _drop_rare_end_token(document: dict[str, Any]) -> bool:
    """Drop the rarest of several end tokens: the workspace and the report keep all."""
    tokens = _dataset_of(document).get("endTokens", [])
    return len(tokens) > 1 and bool(tokens.pop())


def _drop_end_tokens(document: dict[str, Any]) -> bool:
    return _dataset_of(document).pop("endTokens", None) is not None


def _drop_config(document: dict[str, Any]) -> bool:
    """Drop the config. No dense model's config is that long, and the progress has shown it."""
    model = document.get("prepare", {}).get("model", {})
    return model.get("config") is not None and not model.update(config=None)


def _cut_all(document: dict[str, Any]) -> bool:
    shortened = _shorten_texts(document)
    changed = shortened != document
    document.update(shortened)
    return bool(changed)


_CONCESSIONS = (
    _drop_oldest_log_line,
    _cut_message,
    _cut_samples,
    _drop_rare_end_token,
    _cut_warnings,
    _drop_last_warning,
    _drop_identities,
    _cut_all,
    _drop_end_tokens,
    _drop_config,
)
"""From the least needed text to the most needed; each returns whether it removed something."""


def _identities(dataset: dict[str, Any]) -> list[dict[str, Any]]:
    return [dataset[name] for name in ("source", "validationSource") if name in dataset]


def _cut(holder: dict[str, Any], key: str, maximum: int) -> bool:
    """Shorten one text; return whether it was longer."""
    text = holder.get(key)
    if not isinstance(text, str) or len(text) <= maximum:
        return False
    holder[key] = shorten(text, maximum)
    return True


def _shorten_texts(value: Any) -> Any:
    """Shorten every text to at most `_TRIMMED_TEXT` bytes of the encoded document."""
    if isinstance(value, str):
        if len(_encode(value)) <= _TRIMMED_TEXT + 2:
            return value
        while len(_encode(value)) > _TRIMMED_TEXT - 1:
            value = value[: len(value) * 7 // 8]
        return value + "..."
    if isinstance(value, list):
        return [_shorten_texts(item) for item in value]
    if isinstance(value, dict):
        return {key: _shorten_texts(item) for key, item in value.items()}
    return value
