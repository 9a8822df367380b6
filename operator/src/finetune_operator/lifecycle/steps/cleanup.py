"""Deletes the Jobs of earlier attempts, and the workspace after the job has ended."""

from __future__ import annotations

from collections.abc import Iterable

from finetune_operator.api.spec import FineTuneJobSpec, Lifecycle
from finetune_operator.api.stages import Stage
from finetune_operator.lifecycle.actions import DeleteClaim, DeleteJob, DeletePod, Need
from finetune_operator.lifecycle.reconciliation import Reconciliation
from finetune_operator.lifecycle.retention import child_expiry, keeps_workspace
from finetune_operator.observed.observation import ChildJob, Pod
from finetune_operator.status.record import StatusRecord

SIDECAR_GRACE_SECONDS = 30
"""Time between SIGTERM and SIGKILL for an injected container of TRAIN. Its trainer, which needs more, has ended."""


def delete_finished_jobs(state: Reconciliation) -> Reconciliation | Need:
    """Delete every Job but the current attempt's. Jobs of recorded attempts stay for the configured time.

    A fresh read comes before the deletion of one that may still run. If a pod of it has lost its label, only the Job
    leads to it.
    """
    lifecycle = state.spec.lifecycle if state.spec is not None else Lifecycle()
    current = None if state.draft.finished else state.current_child
    for child in state.own_children:
        if child.deleting or child == current or (child.stage is Stage.REPORT and state.awaits_report):
            continue
        pods = state.pods_of(child)
        held = [pod for pod in pods if pod.end is not None and not pod.idle and not pod.deleting]
        attempt = state.draft.find_attempt(child.stage, child.attempt)
        expiry = child_expiry(attempt, lifecycle, state.now, held=bool(held))
        if _may_go_on(child, pods):
            # Its attempt has ended: it did not start, its node is lost, its pod was replaced, or it left its queue.
            expiry = state.now
        if expiry > state.now:
            state = state.with_requeue(expiry)
            continue
        if attempt is None and not child.finished and not state.observation.fresh:
            return Need.FRESH_CHILDREN
        ended_pods = [
            DeletePod(pod.name, pod.uid) for pod in pods if (pod.end is not None and pod.idle) or not pod.node
        ]
        if child.stage is Stage.TRAIN:
            ended_pods += [DeletePod(pod.name, pod.uid, SIDECAR_GRACE_SECONDS) for pod in held]
        state = state.with_actions(DeleteJob(child.name, child.uid, child.kind), *ended_pods)
    return state


def _may_go_on(child: ChildJob, pods: Iterable[Pod]) -> bool:
    """True if a pod of the Job runs, or if the Job controller or a queue may start another one."""
    pods = tuple(pods)
    ended = child.finished or any(pod.end is not None and not pod.deleting for pod in pods)
    return any(pod.live for pod in pods) or not ended


def delete_workspace(state: Reconciliation) -> Reconciliation | Need:
    """Delete the workspace of a job that has ended, unless its policy keeps it or its report is not copied yet.

    Without a readable spec the policy is unknown, so the workspace stays. A claim that is not known when the job ends is
    looked for once: without its label, no watch shows it.
    """
    spec, claim = state.spec, state.own_claim
    if not state.draft.finished or spec is None or state.awaits_report:
        return state
    if keeps_workspace(spec.lifecycle, succeeded=state.draft.succeeded):
        return state
    if claim is None:
        return Need.FRESH_CHILDREN if _may_have_hidden_claim(state, spec) else state
    return state if claim.deleting else state.with_actions(DeleteClaim(claim.name, claim.uid))


def _may_have_hidden_claim(state: Reconciliation, spec: FineTuneJobSpec) -> bool:
    """True in the decision that ends the job, before its fresh read, if the operator has made a claim for it."""
    ends = not StatusRecord.read(state.job, state.now).finished
    return ends and not state.observation.fresh and spec.workspace.existing_claim is None
