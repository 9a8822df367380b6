"""Follows the Job of the current attempt: its node, its progress, and what it waits for."""

from __future__ import annotations

from finetune_operator.api.conditions import Condition, find_condition
from finetune_operator.api.reasons import Reason
from finetune_operator.api.spec import FineTuneJobSpec
from finetune_operator.api.stages import Stage
from finetune_operator.lifecycle.actions import SuspendJob
from finetune_operator.lifecycle.reconciliation import Reconciliation
from finetune_operator.lifecycle.sizing import Feasible, why_no_gpu
from finetune_operator.lifecycle.stage_jobs import size_host
from finetune_operator.observed.lost_nodes import unconfirmed_end
from finetune_operator.observed.observation import ChildJob
from finetune_operator.observed.pending import NO_POD_GRACE, is_stuck, why_waiting
from finetune_operator.observed.steady import steady


def follow_stage(state: Reconciliation) -> Reconciliation:
    """Record the Job and its progress, resume it if the operator suspended it, and say what it does."""
    child = state.current_child
    if state.runnable_spec is None or child is None:
        return state
    if not state.draft.job_seen:
        state = _record_host(state, state.runnable_spec)
    state = state.with_draft(state.draft.record_job(child.created, _node_to_record(state, child)))
    if child.held and not child.deleting:
        resume = SuspendJob(
            child.name, child.uid, suspend=False, resource_version=child.resource_version, kind=child.kind
        )
        state = state.with_actions(resume)
    progress = state.progress
    if progress is not None:
        state = state.with_draft(state.draft.record_progress(progress))
        due = state.draft.next_progress(progress)
        state = state if due is None else state.with_requeue(due)
    if _is_queued(state, child):
        return state.with_draft(state.draft.queue(_why_it_queues(state, child)))
    state = state.progressing(*_activity(state, child))
    if not state.pods_of(child) and not child.suspended:
        overdue = child.started + NO_POD_GRACE
        state = state.with_requeue(overdue if state.now < overdue else state.now + NO_POD_GRACE)
    return state


def _record_host(state: Reconciliation, spec: FineTuneJobSpec) -> Reconciliation:
    """Record the host memory of a new Job. It follows from the record, so it is that which the Job was made with."""
    draft = state.draft
    host = size_host(spec, draft, state.settings, draft.out_of_memory_kills)
    return state.with_draft(draft.record_host(draft.stage, host.memory_bytes, host.memory_reason))


def _is_queued(state: Reconciliation, child: ChildJob) -> bool:
    """True while a queue holds the Job, unless a node keeps the pod that the queue has stopped."""
    unconfirmed = unconfirmed_end(state.pods_of(child), state.observation.inventory, state.now)
    return bool(child.queue) and child.suspended and not child.held and unconfirmed is None


def _why_it_queues(state: Reconciliation, child: ChildJob) -> str:
    """The message of a Job that waits for its queue. It stays the same for as long as the Job does."""
    queue, stage = f"LocalQueue {child.queue}", state.draft.stage.value
    if state.draft.node_seen:
        text = f"Kueue has stopped Job {child.name}; {stage} goes on from its saved state when the {queue} admits it again"
    else:
        text = f"Job {child.name} waits until the {queue} of Kueue admits it"
    return f"{text}; kubectl describe workloads --namespace {state.job.namespace} shows what it waits for"


def _node_to_record(state: Reconciliation, child: ChildJob) -> str:
    """The node of the Job's pod. For a CPU stage it is written together with the start of the trainer.

    TRAIN's is written at once: from then on, the workspace may hold a checkpoint of its plan.
    """
    starting = all(pod.live and not pod.running and not is_stuck(pod) for pod in state.pods_of(child))
    return "" if starting and child.stage is not Stage.TRAIN else state.node_of(child)


def _activity(state: Reconciliation, child: ChildJob) -> tuple[Reason, str]:
    """Reason and message of a stage whose Job exists."""
    stage = state.draft.stage
    hindrance = _hindrance(state, child)
    if hindrance is not None:
        return hindrance
    if any(pod.running for pod in state.pods_of(child)):
        if state.draft.awaits_destination and not _has_begun(state):
            # The reason does not change with every attempt at a destination that still fails.
            return Reason.WAITING_FOR_DESTINATION, f"{stage.value} tries the destination again"
        return stage.active_reason, f"{stage.value} is running"
    return state.draft.starting_reason, f"waits for the pod of Job {child.name} to start"


def _hindrance(state: Reconciliation, child: ChildJob) -> tuple[Reason, str] | None:
    """Reason and message of what keeps the stage from running; None if nothing is known to."""
    pods, feasibility = state.pods_of(child), state.feasibility
    unconfirmed = unconfirmed_end(pods, state.observation.inventory, state.now)
    if unconfirmed is not None:
        return Reason.NODE_LOST, unconfirmed
    if child.suspended and not child.held:
        return Reason.JOB_SUSPENDED, (
            f"Job {child.name} is suspended, but not by the operator, so the operator does not resume it; "
            "set its spec.suspend to false"
        )
    waiting = why_waiting(child, pods, state.observation.warnings, state.now)
    if waiting is None:
        return None
    reason, message = waiting.reason, waiting.message
    if (
        state.draft.stage is Stage.TRAIN
        and isinstance(feasibility, Feasible)
        and reason is Reason.UNSCHEDULABLE
    ):
        reason, message = Reason.WAITING_FOR_GPU, why_no_gpu(feasibility.offers, message)
        problem = state.observation.inventory.problem
        message = message if problem is None else f"{message}; {problem}"
    shown = find_condition(state.job.status, Condition.RECONCILING)
    return reason, steady(shown.get("message", ""), message) if shown.get("reason") == reason else message


def _has_begun(state: Reconciliation) -> bool:
    """True once the trainer reports work. MERGE tries the destination before it does any."""
    return state.progress is not None and state.progress.activity != "Starting"
