"""Checks whether TRAIN can run on the GPUs and volumes of the cluster."""

from __future__ import annotations

from dataclasses import replace

from finetune_operator.api.reasons import Reason
from finetune_operator.api.spec import FineTuneJobSpec
from finetune_operator.api.stages import Stage
from finetune_operator.lifecycle import volumes as volume_policy
from finetune_operator.lifecycle.actions import DeleteClaim, Need
from finetune_operator.lifecycle.reconciliation import Reconciliation
from finetune_operator.lifecycle.retry import MAXIMUM_ATTEMPT
from finetune_operator.lifecycle.sizing import Feasible, Infeasible, assess_training, shape_of
from finetune_operator.placement.storage import JobVolumes


def check_feasibility(state: Reconciliation) -> Reconciliation | Need:
    """Find out whether TRAIN can run, and replace a waiting TRAIN Job that was made for other GPUs.

    PREPARE reports `config.json`, and later a trace, before it downloads weights, so most misfits are found early.
    Nothing is checked any more once TRAIN's pod has a node.
    """
    spec = state.active_spec
    if spec is None or spec.suspend:
        return state
    progress = state.progress
    config = None if progress is None else progress.config
    size_is_new = config is not None and state.draft.config is None
    if config is not None:
        state = state.with_draft(state.draft.record_config(config))
    if progress is not None and progress.trace is not None:
        # Of a model without a closed form, the trace is the first that is known of its size.
        size_is_new = size_is_new or (state.draft.trace is None and shape_of(state.draft) is None)
        state = state.with_draft(state.draft.record_trace(progress.trace))
    child = state.current_child
    if state.draft.stage is Stage.TRAIN and child is not None and state.node_of(child):
        return state
    found = assess_training(spec, state.draft, state.observation.inventory, state.settings)
    state = replace(state, feasibility=found)
    if isinstance(found, Feasible) and (state.draft.stage is Stage.TRAIN or size_is_new):
        if state.observation.volumes is None:
            return Need.VOLUMES
        checked = _check_volumes(state, spec, found, state.observation.volumes, size_is_new=size_is_new)
        if isinstance(checked, Need):
            return checked
        state = checked
    if isinstance(state.feasibility, Infeasible):
        state = state.with_draft(state.draft.fail(state.feasibility.reason, state.feasibility.message))
    return _update_train(state) if state.draft.stage is Stage.TRAIN else state


def _check_volumes(
    state: Reconciliation,
    spec: FineTuneJobSpec,
    feasible: Feasible,
    volumes: JobVolumes,
    *,
    size_is_new: bool,
) -> Reconciliation | Need:
    """Move, enlarge or reject a workspace that does not suit TRAIN."""
    progress = state.progress if size_is_new else None
    misplaced = volume_policy.misplaced_workspace(spec, feasible, volumes, progress)
    checked, changes = volume_policy.check_volumes(spec, state.draft, feasible, volumes)
    if misplaced is not None and (spec.workspace.size is None or not isinstance(checked, Infeasible)):
        if not state.observation.fresh:
            return Need.FRESH_CHILDREN
        # This is not a failed attempt: nothing that PREPARE has done is of use elsewhere. The new claim gets its place
        # and its size from what is known now.
        draft = state.draft.begin_attempt(state.draft.attempt + 1, state.now)
        return state.with_draft(draft).with_actions(DeleteClaim(misplaced.name, misplaced.uid))
    return replace(state, feasibility=checked).with_actions(*changes)


def _update_train(state: Reconciliation) -> Reconciliation | Need:
    """Record the plan of TRAIN, and begin another attempt if the current Job was made for another plan."""
    draft, feasibility, child = state.draft, state.feasibility, state.current_child
    if isinstance(feasibility, Feasible) and not draft.training_begun:
        draft = draft.record_plan(feasibility.shown)
    suits = isinstance(feasibility, Feasible) and child is not None and child.placement == feasibility.digest
    if child is not None and not suits and not draft.finished and draft.attempt < MAXIMUM_ATTEMPT:
        if not state.observation.fresh:
            # The watch may not show a pod that runs.
            return Need.FRESH_CHILDREN
        # No pod has a node now, so nothing is lost. The node constraints of a pod cannot be changed.
        message = f"the GPUs of the cluster have changed while Job {child.name} waited for one"
        return state.with_draft(draft).with_attempt_left(Reason.DISRUPTED, message)
    return state.with_draft(draft)
