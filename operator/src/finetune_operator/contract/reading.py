"""Strict, bounded reading of a trainer's documents: termination messages and progress.

The trainer runs users' data and models, so its documents are hostile input. Everything that passes here fits the CRD's
status schema. Everything else raises MalformedDocumentError. A document of a later minor version may have values that are
not known here: it is read without them.
"""

from __future__ import annotations

import json
from typing import Any, NoReturn, TypeVar

from pydantic import ValidationError

from finetune_operator.api.stages import Stage
from finetune_operator.contract.bounded import Document, clean_text
from finetune_operator.contract.newer import Remainder, is_newer
from finetune_operator.contract.result import NEWER, Progress, Result
from finetune_operator.errors import MalformedDocumentError

MAXIMUM_RESULT_BYTES = 4096
"""The kubelet's limit on one container's termination message."""


MAXIMUM_PROGRESS_BYTES = 16 * 1024


_AnyDocument = TypeVar("_AnyDocument", bound=Document)


def parse_result(message: str, *, uid: str, stage: Stage, attempt: int) -> Result:
    """Read the termination message of one attempt of one stage of the job with this uid.

    Raises MalformedDocumentError if it breaks the contract, belongs to another run, reports success without the stage's
    section, or reports a failure without a reason.
    """
    result = _parse(Result, message.encode("utf-8", "replace"), MAXIMUM_RESULT_BYTES)
    _match_run(result.uid, result.stage, result.attempt, uid, stage, attempt)
    if result.outcome == "Succeeded" and stage is Stage.REPORT:
        return result
    if result.outcome == "Succeeded":
        section = {Stage.PREPARE: result.prepare, Stage.TRAIN: result.train, Stage.MERGE: result.merge}[stage]
        if section is None:
            raise MalformedDocumentError(f"a successful result must have `{stage.slug}`, found none")
    elif result.reason is None:
        raise MalformedDocumentError(f"outcome {result.outcome} must come with a reason, found none")
    return result


def parse_progress(body: bytes, *, uid: str, stage: Stage, attempt: int) -> Progress:
    """Read a progress document. Raises MalformedDocumentError if it is malformed or belongs to another run."""
    progress = _parse(Progress, body, MAXIMUM_PROGRESS_BYTES)
    _match_run(progress.uid, progress.stage, progress.attempt, uid, stage, attempt)
    return progress


def _match_run(
    found_uid: str, found_stage: Stage, found_attempt: int, uid: str, stage: Stage, attempt: int
) -> None:
    found, expected = (found_uid, found_stage, found_attempt), (uid, stage, attempt)
    if found != expected:
        raise MalformedDocumentError(
            f"must be for uid {uid}, stage {stage}, attempt {attempt}; "
            f"found {clean_text(found_uid)}, {found_stage}, {found_attempt}"
        )


def _parse(kind: type[_AnyDocument], body: bytes, maximum: int) -> _AnyDocument:
    if len(body) > maximum:
        raise MalformedDocumentError(f"must be at most {maximum} bytes, found {len(body)}")
    try:
        content = json.loads(body, parse_constant=_reject_constant)
    except (ValueError, RecursionError) as error:
        raise MalformedDocumentError(f"must be JSON, found {type(error).__name__}") from error
    try:
        return kind.model_validate(content)
    except (ValidationError, RecursionError) as error:
        if isinstance(error, ValidationError) and is_newer(content):
            return _parse_newer(kind, content, error)
        raise MalformedDocumentError(_describe(error)) from error


def _parse_newer(kind: type[_AnyDocument], content: dict[str, Any], first: ValidationError) -> _AnyDocument:
    """Read a document of a later minor version without the members whose values are not known here."""
    remainder, error = Remainder(content), first
    while remainder.without(detail["loc"] for detail in error.errors(include_url=False, include_input=False)):
        try:
            return kind.model_validate(remainder.content, context=NEWER)
        except ValidationError as another:
            error = another
    raise MalformedDocumentError(_describe(first)) from first


def _reject_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _describe(error: ValidationError | RecursionError) -> str:
    """The first violation, without the offending value, which is not trusted."""
    if isinstance(error, RecursionError):
        return "must not be nested so deeply"
    detail = error.errors(include_url=False, include_context=False, include_input=False)[0]
    path = ".".join(str(step) for step in detail["loc"])
    return clean_text(f"{path}: {detail['msg']}")[:256]
