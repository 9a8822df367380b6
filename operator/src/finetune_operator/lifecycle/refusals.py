"""Decides which actions the API server's refusals hold back, and when a refused action is tried again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from typing import Any

from finetune_operator.api.stages import Stage, parse_child_name
from finetune_operator.lifecycle.actions import (
    Action,
    CreateClaim,
    CreateJob,
    DeleteClaim,
    DeleteJob,
    DeletePod,
    ExpandClaim,
    SuspendJob,
)
from finetune_operator.observed.observation import CREATION, Rejection

FIRST_DELAY = timedelta(seconds=15)
LONGEST_DELAY = timedelta(minutes=5)


def delay_after(failures: int, draw: float) -> timedelta:
    """Delay after `failures` refusals in a row (at least 1): 15 s, 30 s, 60 s and so on, at most 5 min, give or take 20 %.

    `draw` is a random number from 0 to 1.
    """
    delay = min(FIRST_DELAY * (1 << min(failures - 1, 16)), LONGEST_DELAY)
    return delay * (0.8 + 0.4 * draw)


def action_key(action: Action) -> str:
    """The name under which the refusal of `action` is remembered. The claim and the Job of an attempt share one.

    The Job of the report has its own: a refusal of the last attempt says nothing about it.
    """
    match action:
        case CreateJob(body) if _is_report(body):
            return f"create {body['metadata']['name']}"
        case CreateClaim() | CreateJob():
            return CREATION
        case ExpandClaim(name, _, size):
            return f"expand {name} to {size}"
        case SuspendJob(name, uid, suspend):
            return f"{'suspend' if suspend else 'resume'} {name} {uid}"
        case DeleteJob(name, uid) | DeletePod(name, uid, _) | DeleteClaim(name, uid):
            return f"delete {name} {uid}"


def _is_report(body: Mapping[str, Any]) -> bool:
    named = parse_child_name(body["metadata"]["name"])
    return named is not None and named[1] is Stage.REPORT


def depends_on(action: Action, other: Action) -> bool:
    """True if `action` is of no use before `other` has succeeded."""
    return isinstance(action, CreateJob) and isinstance(other, (CreateClaim, ExpandClaim))


def split_refused(
    actions: Iterable[Action], refusals: Mapping[str, Rejection], now: datetime
) -> tuple[tuple[Action, ...], tuple[Action, ...]]:
    """Split `actions` into those to try now and those to hold back.

    An action is held back until its own refusal may be tried again, or as long as it depends on one that is held back.
    """
    tried: list[Action] = []
    held: list[Action] = []
    for action in actions:
        refusal = refusals.get(action_key(action))
        waits = refusal is not None and now < refusal.retry_time
        if waits or any(depends_on(action, other) for other in held):
            held.append(action)
        else:
            tried.append(action)
    return tuple(tried), tuple(held)
