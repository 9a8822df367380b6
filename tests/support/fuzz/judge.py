"""Judges the answer to a resource, and what the operator makes of one that the API server has stored."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from finetune_operator.api.conditions import Condition, Truth, find_condition
from finetune_operator.api.reasons import OPERATOR_CLASSES, Reason, ReasonClass

from tests.support.crd_schema import root_schema

_TOP = "|".join(root_schema()["properties"]["spec"]["properties"])
_FIELD = re.compile(
    rf"\b(spec|metadata)[.:\[]|\bspec\b|\b({_TOP})[.\[ ]|json: |unknown field|duplicate field|apiVersion|kind|field \""
)
"""What names a field in a message."""
_BOUND = re.compile(
    r"must |should |Must |Required value|Unsupported value|Too (long|many)|Duplicate value|unknown field|duplicate field"
    r"|cannot unmarshal|invalid character|exceeded|exceeds|limit is|does not match|not allowed|may not|no kind|invalid"
)
"""What says how a value must be."""
_JOB_FAILURES = frozenset(
    reason.value for reason, kind in OPERATOR_CLASSES.items() if kind is ReasonClass.PERMANENT
)
_WAITS = frozenset(
    reason.value
    for reason, kind in OPERATOR_CLASSES.items()
    if kind in {ReasonClass.WAITING, ReasonClass.STALLED}
)


@dataclass(frozen=True)
class Verdict:
    """What became of a resource; `problem` is empty if that is right."""

    outcome: str
    problem: str = ""


def judge_answer(status: int, body: bytes) -> Verdict | None:
    """Judge a refusal by the API server; None if it has accepted the resource."""
    if status == 201:
        return None
    try:
        message = str(json.loads(body)["message"])
    except (ValueError, KeyError):
        message = body.decode(errors="replace")
    outcome = f"refused {status}"
    if status >= 500 or status not in {400, 409, 413, 422}:
        return Verdict(outcome, f"must be accepted or refused, found {message[:500]}")
    if status == 413:
        named = "limit is" in message or "too large" in message
    elif "invalid character" in message:
        # What is no JSON has no fields.
        named = True
    else:
        named = bool(_FIELD.search(message)) and bool(_BOUND.search(message))
    return Verdict(outcome, "" if named else f"must name field and bound, found {message[:500]}")


def judge_job(job: Mapping[str, Any], children: frozenset[str]) -> Verdict | None:
    """Judge a stored job by its status and the names of its Jobs; None if the operator has not settled it yet."""
    if f"{job['metadata']['name']}-prepare-0" in children:
        return Verdict("PREPARE")
    status = job.get("status") or {}
    succeeded = find_condition(status, Condition.SUCCEEDED)
    if succeeded.get("status") == Truth.FALSE:
        return _ended(succeeded)
    if find_condition(status, Condition.SUSPENDED).get("status") == Truth.TRUE:
        wanted = job["spec"].get("suspend") is True
        return Verdict(
            "suspended", "" if wanted else "must not be suspended, because its user has not asked for it"
        )
    for kind in (Condition.STALLED, Condition.RECONCILING):
        found = find_condition(status, kind)
        if found.get("status") == Truth.TRUE and found.get("reason") in _WAITS:
            return Verdict(f"waits: {found['reason']}", _wait_problem(found))
    return None


def _wait_problem(found: Mapping[str, Any]) -> str:
    if found["reason"] == Reason.VERSION_SKEW:
        return f"must be refused by a CRD of the operator's version, found {found['message']}"
    if not _FIELD.search(found.get("message", "")):
        return f"must name what it waits for, found {found.get('message')!r}"
    return ""


def _ended(succeeded: Mapping[str, Any]) -> Verdict:
    reason, message = succeeded["reason"], succeeded.get("message", "")
    outcome = f"failed: {reason}"
    if reason not in _JOB_FAILURES:
        return Verdict(outcome, f"must end for a reason of a job, found {reason}: {message[:500]}")
    if not (_FIELD.search(message) and _BOUND.search(message)):
        return Verdict(outcome, f"must name field and bound, found {message[:500]}")
    return Verdict(outcome)
