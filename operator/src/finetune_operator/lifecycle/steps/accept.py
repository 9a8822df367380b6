"""Reads the spec and records the job."""

from __future__ import annotations

from dataclasses import replace

from finetune_operator.api.reasons import Reason
from finetune_operator.api.spec import FineTuneJobSpec, spec_hash
from finetune_operator.api.validation import check
from finetune_operator.errors import InvalidSpecError
from finetune_operator.lifecycle.reconciliation import Reconciliation
from finetune_operator.sizing.planning import make_plan


def accept_job(state: Reconciliation) -> Reconciliation:
    """Read the spec, then record its hash and start the clock. An active job with an invalid spec fails.

    A job that has ended keeps its status, even if this version cannot read its spec any more.
    """
    draft = state.draft
    try:
        spec = FineTuneJobSpec.parse(state.job.spec)
        check(state.job.name, spec)
    except InvalidSpecError as error:
        return state if draft.finished else state.with_draft(draft.fail(Reason.INVALID_SPEC, str(error)))
    if not draft.finished:
        draft = draft.accept(spec_hash(spec), make_plan(spec, state.settings.trainer.device))
        draft = draft if spec.suspend else draft.mark_started()
    return replace(state, spec=spec, draft=draft)
