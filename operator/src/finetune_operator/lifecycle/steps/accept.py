"""Reads the spec and the status, and records the job."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

from finetune_operator.api.conditions import Condition, Truth
from finetune_operator.api.reasons import Reason
from finetune_operator.api.stored import StoredSpec, list_paths, read_stored
from finetune_operator.api.validation import check
from finetune_operator.errors import InvalidSpecError
from finetune_operator.lifecycle.reconciliation import Reconciliation
from finetune_operator.sizing.planning import make_plan
from finetune_operator.status.condition_table import Entry
from finetune_operator.status.stored import status_problem

REMEDY = (
    "run the operator whose version is that of the installed CRD; the job waits as it is, and its pods go on"
)


def accept_job(state: Reconciliation) -> Reconciliation:
    """Read the spec, then record its hash and start the clock. A new job with an invalid spec fails.

    A job that was accepted never fails for its spec: the versions of CRD and operator may have changed since. It is held
    if this version cannot read it. A rule that has become stricter does not apply to it. A job that has ended keeps its
    status.
    """
    problem = status_problem(state.job.status)
    stored = read_stored(state.job.spec)
    if state.draft.finished:
        return replace(state, spec=stored.spec, held=problem is not None)
    unreadable = problem or _unreadable(stored)
    if unreadable or stored.spec is None:
        return state.on_hold(f"this operator cannot read {unreadable}; {REMEDY}")
    violation = _violation(state.job.name, stored)
    if violation and stored.ignored:
        # What it breaks may be allowed by the fields that are left out.
        message = f"this operator does not know {list_paths(stored.ignored)}, without which {violation}"
        return state.on_hold(f"{message}; {REMEDY}")
    if violation and not _is_accepted(state):
        return state.with_draft(state.draft.fail(Reason.INVALID_SPEC, violation))
    spec = stored.spec
    draft = state.draft.accept(stored.hash, make_plan(spec, state.settings.trainer.device))
    draft = draft if spec.suspend else draft.mark_started(_start(state))
    return _note_ignored(replace(state, spec=spec, draft=draft), stored.ignored)


def _unreadable(stored: StoredSpec) -> str:
    """What this version needs and cannot read; empty if it reads everything."""
    if stored.spec is None:
        return list_paths(stored.unreadable)
    output = stored.spec.output
    # A later version may know another place.
    return "" if output.destination or output.destinations else "spec.output, which gives no destination"


def _violation(name: str, stored: StoredSpec) -> str:
    """What breaks a bound or a rule of this version; empty if nothing does."""
    if stored.violation or stored.spec is None:
        return stored.violation
    try:
        check(name, stored.spec)
    except InvalidSpecError as error:
        return str(error)
    return ""


def _is_accepted(state: Reconciliation) -> bool:
    """True if a version of the operator has accepted the job. Its Jobs show that if its status was lost."""
    return state.draft.spec_hash is not None or bool(state.own_children)


def _start(state: Reconciliation) -> datetime:
    """When the job's clock starts: now, or when its first Job was created if that came before the first status."""
    created = [child.created for child in state.own_children] if state.draft.spec_hash is None else []
    return min([state.now, *created])


def _note_ignored(state: Reconciliation, ignored: tuple[str, ...]) -> Reconciliation:
    """Say which fields are ignored, in a condition that exists only if there have been any."""
    kind = Condition.FIELDS_IGNORED
    if ignored:
        message = (
            f"this operator does not know {list_paths(ignored)} and runs the job as if they were not set; "
            "run the operator whose version is that of the installed CRD"
        )
        entry = Entry(kind, Truth.TRUE, Reason.UNKNOWN_FIELDS, message)
    elif state.draft.conditions.has(kind):
        entry = Entry(kind, Truth.FALSE, Reason.FIELDS_KNOWN, "")
    else:
        return state
    return state.with_draft(state.draft.with_conditions([entry]))
