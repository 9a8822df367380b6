"""Starts nothing that the administrator's policy forbids."""

from __future__ import annotations

from dataclasses import replace

from finetune_operator.api.policy import violations
from finetune_operator.api.reasons import Reason
from finetune_operator.lifecycle.reconciliation import Reconciliation
from finetune_operator.lifecycle.sizing import Blocked

REMEDY = "create another FineTuneJob within these limits, or ask the administrator to change the policy of the operator's chart"


def hold_denied_job(state: Reconciliation) -> Reconciliation:
    """Block the next start of a job that breaks the policy of its namespace, also if the policy is newer than the job.

    The API server refuses such a job when it is created, unless it has no admission policy. A stage whose Job exists and
    is not suspended goes on: to end it would throw GPU hours away, and its node and volumes are in use already.
    """
    spec, child = state.active_spec, state.current_child
    if spec is None or spec.suspend or (child is not None and not child.suspended):
        return state
    found = violations(spec, state.settings.job_policy.limits_of(state.job.namespace))
    if not found:
        return state
    message = f"the policy of namespace {state.job.namespace} forbids the job: {'; '.join(found)}; {REMEDY}"
    return replace(state, feasibility=Blocked(Reason.POLICY_DENIED, message))
