"""The contract's bounds on the texts and lists of a result, and what earlier readers take."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from finetune_trainer.contract.run_spec import minor_version
from finetune_trainer.errors import Reason

if TYPE_CHECKING:
    from finetune_trainer.contract.part import Part
    from finetune_trainer.contract.result import MergeResult, PrepareResult, StageResult, WarningResult
    from finetune_trainer.contract.train_result import TrainResult

MAXIMUM_MESSAGE = 1024
MAXIMUM_LOG_LINE = 256
MAXIMUM_LOG_LINES = 20
MAXIMUM_TEXT = 256
MAXIMUM_LEARNED = 512
MAXIMUM_WARNINGS = 8
MAXIMUM_END_TOKENS = 8
MAXIMUM_TOKEN = 64
MAXIMUM_TENSOR = 128
MAXIMUM_ADDRESS = 512
MAXIMUM_MERGE_WARNINGS = 4
MAXIMUM_FAILED_RUNGS = 17
MAXIMUM_REASON = 512
MAXIMUM_VERSION_CHANGES = 8
_SIZE_UNKNOWN_SINCE = 11


_Part = TypeVar("_Part", bound="Part")


def readable_reason(reason: Reason, version: str) -> Reason:
    """Return a failure's reason for a reader of `version`.

    Before 1.11, an operator takes ModelSizeUnknown from no trainer. It is the reason that the operator gives itself.
    """
    newer = reason is Reason.MODEL_SIZE_UNKNOWN and minor_version(version) < _SIZE_UNKNOWN_SINCE
    return Reason.UNSUPPORTED_MODEL if newer else reason


def within_contract(result: StageResult, version: str) -> StageResult:
    """Return `result` within the contract's bounds: texts and lists cut, sources as flat properties.

    Readers of an earlier minor version ignore members that they do not know. Version 1.0 reads each warning as a
    sentence, so it gets sentences if the run spec's `version` is 1.0.
    """
    changes: dict[str, Any] = {}
    if result.prepare is not None:
        changes["prepare"] = _bounded_prepare(result.prepare, version)
    if result.train is not None:
        changes["train"] = _bounded_train(result.train)
    if result.merge is not None:
        changes["merge"] = _bounded_merge(result.merge)
    completed = result.completed
    if completed is not None:
        later: dict[str, Any] = {}
        if completed.train is not None:
            later["train"] = _bounded_train(completed.train)
        if completed.merge is not None:
            later["merge"] = _bounded_merge(completed.merge)
        changes["completed"] = completed.model_copy(update=later)
    return result.model_copy(update=changes)


def _bounded_prepare(prepare: PrepareResult, version: str) -> PrepareResult:
    dataset = prepare.dataset
    changes: dict[str, Any] = {}
    if dataset.source is not None:
        changes["source"] = _flat(dataset.source)
    if dataset.validation_source is not None:
        changes["validation_source"] = _flat(dataset.validation_source)
    if dataset.format is not None:
        changes["format"] = _cut(dataset.format, "why", MAXIMUM_TEXT)
    if dataset.example is not None:
        changes["example"] = _cut(dataset.example, "learned", MAXIMUM_LEARNED)
    if dataset.end_tokens is not None:
        changes["end_tokens"] = tuple(
            _cut(token, "text", MAXIMUM_TOKEN) for token in dataset.end_tokens[:MAXIMUM_END_TOKENS]
        )
    first_version = version.split(".")[:2] == ["1", "0"]
    changes["warnings"] = tuple(
        _sentence(warning) if first_version else _bounded(warning)
        for warning in dataset.warnings[:MAXIMUM_WARNINGS]
    )
    return prepare.model_copy(update={"dataset": dataset.model_copy(update=changes)})


def _bounded_train(train: TrainResult) -> TrainResult:
    changes: dict[str, Any] = {}
    if train.failed_rungs is not None:
        changes["failed_rungs"] = train.failed_rungs[-MAXIMUM_FAILED_RUNGS:]
    if train.batching is not None and train.batching.reason is not None:
        changes["batching"] = _cut(train.batching, "reason", MAXIMUM_REASON)
    return train.model_copy(update=changes)


def _bounded_merge(merge: MergeResult) -> MergeResult:
    verification = merge.verification
    if verification is None:
        return merge
    if verification.weakest_tensor is not None:
        verification = _cut(verification, "weakest_tensor", MAXIMUM_TENSOR)
    if verification.warnings is not None:
        warnings = tuple(_bounded(warning) for warning in verification.warnings[:MAXIMUM_MERGE_WARNINGS])
        verification = verification.model_copy(update={"warnings": warnings})
    return merge.model_copy(update={"verification": verification})


def shorten(text: str, maximum: int) -> str:
    """Cut `text` to `maximum` characters, marking the cut."""
    return text if len(text) <= maximum else text[: maximum - 3] + "..."


def _flat(identity: dict[str, Any]) -> dict[str, Any]:
    """A source's identity without unknown values; a collection becomes the number of its entries."""
    known = {name: value for name, value in identity.items() if value is not None}
    return {
        name: len(value) if isinstance(value, list | dict) else _short(value) for name, value in known.items()
    }


def _short(value: Any) -> Any:
    return value if isinstance(value, int) else shorten(str(value), MAXIMUM_TEXT)


def _cut(part: _Part, name: str, maximum: int) -> _Part:
    return part.model_copy(update={name: shorten(getattr(part, name), maximum)})


def _sentence(warning: WarningResult | str) -> str:
    return shorten(warning if isinstance(warning, str) else warning.message, MAXIMUM_TEXT)


def _bounded(warning: WarningResult | str) -> WarningResult | str:
    """Return the warning with a message of the contract's length; a sentence of version 1.0 stays a sentence."""
    if isinstance(warning, str):
        return shorten(warning, MAXIMUM_TEXT)
    return warning.model_copy(update={"message": shorten(warning.message, MAXIMUM_TEXT)})
