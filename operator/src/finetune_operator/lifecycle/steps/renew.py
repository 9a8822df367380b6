"""Replaces the Job of a stage that has not started and was made with other pod defaults of the chart."""

from __future__ import annotations

from finetune_operator.api.stages import Stage
from finetune_operator.lifecycle.actions import Need
from finetune_operator.lifecycle.pod_defaults import defaults_digest
from finetune_operator.lifecycle.reconciliation import Reconciliation
from finetune_operator.lifecycle.retry import MAXIMUM_ATTEMPT
from finetune_operator.observed.observation import Pod
from finetune_operator.observed.pending import is_stuck


def renew_waiting_stage(state: Reconciliation) -> Reconciliation | Need:
    """Begin another attempt if the current Job's pod never started and the chart's pod defaults have changed since.

    The template of a Job cannot be changed. A quota, a policy or a missing pull secret would hold it forever, although
    the administrator has set what it demands. A stage that runs keeps its Job. So does a TRAIN whose pod has had a
    node: the workspace may hold a checkpoint, and a new attempt without a recorded one would forget its plan.
    """
    spec, child = state.active_spec, state.current_child
    if spec is None or spec.suspend or child is None or child.deleting or child.finished:
        return state
    if child.pod_defaults == defaults_digest(state.settings.trainer, child.stage):
        return state
    if child.stage is Stage.TRAIN and state.draft.training_begun:
        return state
    if state.draft.attempt >= MAXIMUM_ATTEMPT or not all(map(_never_started, state.pods_of(child))):
        return state
    if not state.observation.fresh:
        # The watch may not show a pod that runs.
        return Need.FRESH_CHILDREN
    return state.with_draft(state.draft.begin_attempt(state.draft.attempt + 1, state.now))


def _never_started(pod: Pod) -> bool:
    """True if nothing is lost with the pod: it has no node, or it cannot start its container there."""
    return pod.end is None and not pod.running and (not pod.node or is_stuck(pod))
