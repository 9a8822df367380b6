"""Makes a smaller status of one that the API server refuses, so that the user sees at least what happened.

A CRD of another version may have other bounds. What is refused stays as it was stored last, and a condition says so.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

from finetune_operator.api.conditions import Condition, Conditions, Truth, find_condition
from finetune_operator.api.reasons import Reason

RECORD = frozenset({"stage", "attempts", "specHash", "startTime", "completionTime", "waiting", "conditions"})
"""The members without which the operator would repeat or forget something. They are written together or not at all."""
_MAXIMUM_TEXT = 1024


def refused_members(
    fields: Iterable[str], wanted: Mapping[str, Any], stored: Mapping[str, Any]
) -> frozenset[str]:
    """The members of `wanted` to leave out, for the `fields` that the API server names, such as `status.model.config`.

    If it names none, these are all changed members that are no part of the record. If it names one of the record, these
    are all changed members.
    """
    changed = {name for name, value in wanted.items() if stored.get(name) != value} - {"conditions"}
    named = {parts[1].partition("[")[0] for field in fields if len(parts := field.split(".")) > 1} & changed
    if named & RECORD:
        return frozenset(changed)
    return frozenset(named or changed - RECORD)


def without_refused(
    wanted: Mapping[str, Any],
    stored: Mapping[str, Any],
    refused: Mapping[str, Any],
    message: str,
    generation: int,
    now: datetime,
) -> dict[str, Any]:
    """The status to write instead of `wanted`: members with a `refused` value stay as they are `stored`.

    A condition carries `message` as long as a member is held back. `generation` and `now` are for that condition.
    """
    held = {name for name, value in refused.items() if wanted.get(name) == value}
    kept = {name: value for name, value in wanted.items() if name not in held}
    kept |= {name: stored[name] for name in held if name in stored}
    known = find_condition(wanted, Condition.STATUS_REDUCED)
    conditions = Conditions(wanted.get("conditions") or (), generation, now)
    if held:
        text = f"{', '.join(f'status.{name}' for name in sorted(held))}: {message}"[:_MAXIMUM_TEXT]
        conditions.set(Condition.STATUS_REDUCED, Truth.TRUE, Reason.STATUS_REFUSED, text)
    elif known.get("status") == Truth.TRUE:
        conditions.set(Condition.STATUS_REDUCED, Truth.FALSE, Reason.STATUS_COMPLETE)
    return {**kept, "conditions": conditions.to_list()}
