"""Decides which objects the operator may delete: only its own, known by uid and owner.

A label selects what is watched, and anybody may set one. So a label never makes an object the operator's own.
"""

from __future__ import annotations

from finetune_operator.lifecycle.actions import DeleteClaim, DeleteJob, DeletePod
from finetune_operator.observed.observation import Observation, Pod


def may_delete(observation: Observation, action: DeleteJob | DeletePod | DeleteClaim) -> bool:
    """True if the object is known, and a FineTuneJob or one of its Jobs controls it.

    A Job and a claim must belong to this very FineTuneJob. An object that is not known any more is not deleted: it is gone,
    or a later decision sees it again.
    """
    uid, owner = action.uid, observation.job.uid
    match action:
        case DeleteJob():
            return any(child.uid == uid and child.owner_uid == owner for child in observation.children)
        case DeleteClaim():
            claim = observation.claim
            return claim is not None and claim.uid == uid and claim.owner_uid == owner
        case DeletePod():
            return any(pod.uid == uid and made_by_operator(pod, observation) for pod in observation.pods)


def made_by_operator(pod: Pod, observation: Observation) -> bool:
    """True for a pod of a Job of this FineTuneJob, or with the run spec of a FineTuneJob, whose Job may be gone."""
    own = {child.uid for child in observation.children if child.owner_uid == observation.job.uid}
    return pod.owner_uid in own or bool(pod.job_uid)
