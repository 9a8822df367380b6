"""Records how long the kubelet pulled the image for the current attempt."""

from __future__ import annotations

from finetune_operator.lifecycle.reconciliation import Reconciliation


def record_image_pull(state: Reconciliation) -> Reconciliation:
    """Record the time of the newest pod of the current attempt for which it is known."""
    child = state.current_child
    if child is None or state.active_spec is None or not state.draft.job_seen:
        return state
    pulls = state.observation.image_pulls
    pods = sorted(state.pods_of(child), key=lambda pod: pod.created, reverse=True)
    seconds = next((pulls[pod.uid] for pod in pods if pod.uid in pulls), None)
    return state if seconds is None else state.with_draft(state.draft.record_image_pull(seconds))
