"""A result as the termination message that the kubelet reads: at most 4,096 bytes of JSON.

A longer result loses text in a fixed order (`_CONCESSIONS`); outcome, reason and the digits that the status shows stay.
"""

from __future__ import annotations

import copy
import json
from typing import Any

from finetune_trainer.contract.bounds import shorten

MAXIMUM_BYTES = 4096
_TRIMMED_MESSAGE = 400
_TRIMMED_TEXT = 120
_SHORTEST_TEXT = 80  # a digest has 71 characters
_DIGITS = 6
_FEWEST_RUNGS = 8


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


def _trace_of(document: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = document.get("prepare", {}).get("model", {}).get("trace") or {}
    return found


def _verifications_of(document: dict[str, Any]) -> list[dict[str, Any]]:
    parts = (document, document.get("completed", {}))
    return [found for part in parts if (found := part.get("merge", {}).get("verification"))]


def _evaluations_of(document: dict[str, Any]) -> list[dict[str, Any]]:
    parts = (document, document.get("completed", {}))
    return [found for part in parts if (found := part.get("train", {}).get("evaluation"))]


def _warnings_of(document: dict[str, Any]) -> list[Any]:
    """Return all warnings, those of the dataset first."""
    holders = (_dataset_of(document), *_verifications_of(document))
    return [warning for holder in holders for warning in holder.get("warnings") or ()]


def _drop_oldest_log_line(document: dict[str, Any]) -> bool:
    lines = document.get("logTail")
    if not lines:
        return False
    del lines[0]
    return True


def _cut_message(document: dict[str, Any]) -> bool:
    return _cut(document, "message", _TRIMMED_MESSAGE)


def _round_numbers(document: dict[str, Any]) -> bool:
    """Round to the digits that the status shows; the manifest keeps all."""
    rounded = _rounded(document)
    changed = rounded != document
    document.update(rounded)
    return bool(changed)


def _cut_samples(document: dict[str, Any]) -> bool:
    """Shorten the samples: a person also finds them in the report of the workspace or the artifact."""
    dataset, verifications = _dataset_of(document), _verifications_of(document)
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
    warnings = _warnings_of(document)
    return any(
        _cut(warning, "message", _TRIMMED_TEXT) for warning in reversed(warnings) if isinstance(warning, dict)
    )


def _drop_last_warning(document: dict[str, Any]) -> bool:
    warnings = _dataset_of(document).get("warnings")
    if not warnings:
        return False
    warnings.pop()
    return True


def _drop_proofs_warnings(document: dict[str, Any]) -> bool:
    """Drop the warnings about a merged model: the manifest and the card keep them, and the numbers stay."""
    dropped = [found.pop("warnings", None) for found in _verifications_of(document)]
    return any(warnings is not None for warnings in dropped)


def _drop_perplexity(document: dict[str, Any]) -> bool:
    """Drop what the losses say too."""
    dropped = [found.pop("perplexity", None) for found in _evaluations_of(document)]
    return any(value is not None for value in dropped)


def _drop_measures(document: dict[str, Any]) -> bool:
    """Drop what the verdict does not need: manifest and report keep it. Only a PREPARE with finished stages comes so far."""
    names = ("byRow", "tokenAccuracy", "metrics")
    found = [evaluation.pop(name, None) for evaluation in _evaluations_of(document) for name in names]
    return any(value is not None for value in found)


def _drop_methods(document: dict[str, Any]) -> bool:
    """Drop how a finished TRAIN computed: the log has it, and its own result had it."""
    trained = document.get("completed", {}).get("train", {})
    dropped = [trained.pop(name, None) for name in ("attention", "kernels")]
    return any(value is not None for value in dropped)


def _drop_identities(document: dict[str, Any]) -> bool:
    dataset = _dataset_of(document)
    identities = [dataset.pop(name, None) for name in ("validationSource", "source")]
    return any(identity is not None for identity in identities)


def _drop_failed_rung(document: dict[str, Any]) -> bool:
    """Drop the oldest of the rungs that did not fit: the log has all of them."""
    trained = [part.get("train", {}) for part in (document, document.get("completed", {}))]
    return any(rungs.pop(0) for train in trained if (rungs := train.get("failedRungs")))


def _drop_versions(document: dict[str, Any]) -> bool:
    """Drop the versions of TRAIN's software: the manifest keeps them. What has changed stays."""
    parts = (document, document.get("completed", {}))
    dropped = [part.get("train", {}).pop("versions", None) for part in parts]
    return any(versions is not None for versions in dropped)


def _drop_rare_end_token(document: dict[str, Any]) -> bool:
    """Drop the rarest of several end tokens: the workspace and the report keep all."""
    tokens = _dataset_of(document).get("endTokens", [])
    return len(tokens) > 1 and bool(tokens.pop())


def _drop_samples(document: dict[str, Any]) -> bool:
    """Drop samples and the name of the weakest tensor: the manifest and the report have them."""
    dropped = [_dataset_of(document).pop("example", None) is not None]
    for found in _verifications_of(document):
        dropped += [found.pop(name, None) is not None for name in ("weakestTensor", "weakestSurvival")]
        dropped += [bool(found.get(name)) for name in ("prompt", "answer")]
        found |= {"prompt": "", "answer": ""}
    return any(dropped)


def _drop_end_tokens(document: dict[str, Any]) -> bool:
    return _dataset_of(document).pop("endTokens", None) is not None


def _drop_version_changes(document: dict[str, Any]) -> bool:
    """Drop the oldest change of a version: the manifest and the log have all."""
    for part in (document, document.get("completed", {})):
        changes = part.get("train", {}).get("versionChanges")
        if changes:
            del changes[0]
            return True
    return False


def _drop_training_tokens(document: dict[str, Any]) -> bool:
    """Drop the tokens of all examples: the operator then guesses the time of TRAIN, and says so."""
    return _dataset_of(document).pop("trainingTokens", None) is not None


def _drop_config(document: dict[str, Any]) -> bool:
    """Drop the config. No dense model's config is that long, and the progress has shown it."""
    model = document.get("prepare", {}).get("model", {})
    return model.get("config") is not None and not model.update(config=None)


def _thin_trace(document: dict[str, Any]) -> bool:
    """Drop the last way of a long trace: the first ones matter most, and the progress has shown all."""
    rungs = _trace_of(document).get("rungs", ())
    return len(rungs) > _FEWEST_RUNGS and bool(rungs.pop())


def _drop_trace(document: dict[str, Any]) -> bool:
    """Drop the trace, which the progress has shown."""
    return document.get("prepare", {}).get("model", {}).pop("trace", None) is not None


def _cut_all(document: dict[str, Any]) -> bool:
    return _shorten_all(document, _TRIMMED_TEXT)


def _cut_all_more(document: dict[str, Any]) -> bool:
    return _shorten_all(document, _SHORTEST_TEXT)


def _shorten_all(document: dict[str, Any], maximum: int) -> bool:
    shortened = _shorten_texts(document, maximum)
    changed = shortened != document
    document.update(shortened)
    return bool(changed)


_CONCESSIONS = (
    _drop_oldest_log_line,
    _cut_message,
    _round_numbers,
    _drop_perplexity,
    _cut_samples,
    _drop_versions,
    _drop_rare_end_token,
    _cut_warnings,
    _drop_last_warning,
    _drop_proofs_warnings,
    _drop_measures,
    _drop_methods,
    _drop_identities,
    _drop_failed_rung,
    _thin_trace,
    _cut_all,
    _drop_samples,
    _cut_all_more,
    _drop_end_tokens,
    _drop_version_changes,
    _drop_training_tokens,
    _drop_trace,
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


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.{_DIGITS}g}")
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return value


def _shorten_texts(value: Any, maximum: int) -> Any:
    """Shorten every text to at most `maximum` bytes of the encoded document."""
    if isinstance(value, str):
        if len(_encode(value)) <= maximum + 2:
            return value
        while len(_encode(value)) > maximum - 1:
            value = value[: len(value) * 7 // 8]
        return value + "..."
    if isinstance(value, list):
        return [_shorten_texts(item, maximum) for item in value]
    if isinstance(value, dict):
        return {key: _shorten_texts(item, maximum) for key, item in value.items()}
    return value
