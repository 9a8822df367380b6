"""Creates the Job of the current attempt as soon as nothing stands in its way."""

from __future__ import annotations

from datetime import datetime

from finetune_operator.api.formats import format_time
from finetune_operator.api.reasons import Reason
from finetune_operator.api.spec import FineTuneJobSpec
from finetune_operator.api.stages import Stage
from finetune_operator.lifecycle import volumes as volume_policy
from finetune_operator.lifecycle.actions import CreateJob, Need
from finetune_operator.lifecycle.obstacles import find_obstacle
from finetune_operator.lifecycle.reconciliation import Reconciliation
from finetune_operator.lifecycle.sizing import Blocked, Feasible, Infeasible
from finetune_operator.lifecycle.stage_jobs import build_stage_job, size_host
from finetune_operator.observed.lost_nodes import unconfirmed_end
from finetune_operator.observed.observation import Rejection
from finetune_operator.placement.constraints import Placement
from finetune_operator.placement.storage import JobVolumes
from finetune_operator.status.draft import StatusDraft


def start_stage(state: Reconciliation) -> Reconciliation | Need:
    """Create the current attempt's Job, or say what it waits for."""
    spec, draft = state.runnable_spec, state.draft
    if spec is None or state.current_child is not None:
        return state
    if draft.retry_time is not None and state.now < draft.retry_time:
        return _await_retry(state, draft.retry_time)
    obstacle = find_obstacle(state.observation, draft, own_claim=spec.workspace.existing_claim is None)
    if obstacle is not None:
        observation = state.observation
        unconfirmed = unconfirmed_end(observation.pods, observation.inventory, state.now)
        reason = draft.starting_reason if unconfirmed is None else Reason.NODE_LOST
        state = state.progressing(reason, unconfirmed or f"waits for {obstacle.awaited}")
        return state.with_requeue(state.now + obstacle.look_again)
    rejection = state.observation.rejection
    if rejection is not None and (rejection.final or state.now < rejection.retry_time):
        return _end_or_wait(state, rejection)
    # The reason of a refusal stays until a try succeeds, so that the status does not flip with every try.
    state = (
        state.progressing(draft.starting_reason, f"{draft.stage.value} is starting")
        if rejection is None
        else state.progressing(Reason.CHILD_REFUSED, rejection.message)
    )
    if _may_follow_another(state) and not state.observation.fresh:
        # An earlier attempt may still run: a watch that lags behind, or a changed label, hides its pod.
        return Need.FRESH_CHILDREN
    return _create(state, spec)


def _may_follow_another(state: Reconciliation) -> bool:
    """True for a repeated attempt, and for a first one of a job that has had Jobs: it may have lost its status since.

    Also for MERGE after several pods of TRAIN: the first one ends the stage, and another may be hidden and still run.
    """
    draft = state.draft
    several = (draft.plan.get("training") or {}).get("nodes", 1) > 1
    return (
        draft.attempt > 0
        or (draft.stage is Stage.PREPARE and state.observation.had_jobs)
        or (draft.stage is Stage.MERGE and several)
    )


def _end_or_wait(state: Reconciliation, rejection: Rejection) -> Reconciliation:
    """Fail a job whose child is invalid; let others wait until the child is asked for again."""
    if rejection.final:
        return state.with_draft(state.draft.fail(Reason.INVALID_SPEC, rejection.message))
    return state.progressing(Reason.CHILD_REFUSED, rejection.message).with_requeue(rejection.retry_time)


def _await_retry(state: Reconciliation, retry_time: datetime) -> Reconciliation:
    """Say until when, and why, the stage is not tried again."""
    draft, state = state.draft, state.with_requeue(retry_time)
    if draft.awaits_start:
        return state.with_draft(draft.stall(Reason.POD_STUCK, _why_it_is_stalled(draft, retry_time)))
    return state.progressing(*_why_it_waits(draft, retry_time))


def _why_it_is_stalled(draft: StatusDraft, retry_time: datetime) -> str:
    message = (draft.last_attempt or {}).get("message", "")
    return (
        f"{message}. The GPU is free for others. {draft.stage.value} is tried again at {format_time(retry_time)}, or at "
        "once if spec.suspend is set to true and back to false"
    )


def _why_it_waits(draft: StatusDraft, retry_time: datetime) -> tuple[Reason, str]:
    """Reason and message until the next attempt."""
    last = draft.last_attempt or {}
    message = last.get("message", "")
    if draft.awaits_destination:
        return Reason.WAITING_FOR_DESTINATION, (
            f"the model is trained, but {draft.stage.value} cannot publish it: {message}. It is tried again at "
            f"{format_time(retry_time)} without training again, or at once if spec.suspend is set to true and back to false"
        )
    return Reason.BACKING_OFF, (
        f"attempt {draft.attempt} of {draft.stage.value} follows; the last one ended with "
        f"{last.get('reason', Reason.STAGE_LOST)}: {message}"
    )


def _create(state: Reconciliation, spec: FineTuneJobSpec) -> Reconciliation | Need:
    """Choose the place and the size of the Job, then create it and, if it is missing, the workspace's claim."""
    draft, volumes = state.draft, state.observation.volumes
    placement: Placement | Blocked | Infeasible = Placement()
    if draft.stage is not Stage.TRAIN:
        if volumes is None:
            return Need.VOLUMES
        placement = _place(state, spec, volumes)
    if isinstance(placement, Blocked):
        return state.with_draft(draft.stall(placement.reason, placement.message))
    if isinstance(placement, Infeasible):
        return state.with_draft(draft.fail(placement.reason, placement.message))
    if spec.workspace.existing_claim is None and state.own_claim is None:
        inventory = state.observation.inventory
        claim = volume_policy.create_claim(state.job, spec, draft, state.settings, inventory)
        state = state.with_actions(claim)
    host = size_host(spec, draft, state.settings, draft.out_of_memory_kills)
    read_only = () if volumes is None else volumes.read_only_claims
    body = build_stage_job(
        state.job, spec, draft, state.settings, _feasible(state), placement, host, read_only
    )
    return state.with_actions(CreateJob(body))


def _place(
    state: Reconciliation, spec: FineTuneJobSpec, volumes: JobVolumes
) -> Placement | Blocked | Infeasible:
    """The place of a CPU stage. TRAIN's place comes with its plan."""
    inventory, defaults = state.observation.inventory, state.settings.trainer.defaults
    if state.draft.stage is Stage.PREPARE:
        return volume_policy.place_prepare(spec, _feasible(state), volumes, inventory, defaults)
    return volume_policy.place_merge(spec, volumes, inventory, defaults)


def _feasible(state: Reconciliation) -> Feasible | None:
    return state.feasibility if isinstance(state.feasibility, Feasible) else None
