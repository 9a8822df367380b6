"""A deleted job leaves what its propagation policy says, and its namesake waits for what is left."""

from __future__ import annotations

import pytest
from devcluster.kubectl import Kubectl
from devcluster.pretend_nodes import PretendNodes

from tests.support.e2e import jobs
from tests.support.e2e.fates import (
    PROPAGATIONS,
    Fate,
    Life,
    Stage,
    deleted,
    is_gone,
    judged,
    leaves_orphans,
    live,
)
from tests.support.e2e.scene import Scene

pytestmark = pytest.mark.cluster

STILL_SECONDS = 180.0
WAITS = ("previous FineTuneJob", "an object of another owner has this name")
"""The first while a pod of the orphan runs, the second once its trainer has ended: then only its name is in the way."""


def life(propagation: str) -> Life:
    """A job that is deleted with this policy while PREPARE runs."""
    judge = leaves_orphans if propagation == "Orphan" else is_gone
    fate = Fate("deletion", deleted("prepare", propagation), judge, {"resources": jobs.ONLY_PREPARE})
    return Life(f"deleted-{propagation.lower()}", fate)


def test_a_deleted_job_leaves_what_its_policy_says_and_a_namesake_waits_for_it(
    room: Kubectl, pretend_nodes: PretendNodes
) -> None:
    assert room.namespace is not None
    scene = Scene(room.kubeconfig, room.namespace)
    chosen = [life(propagation) for propagation in PROPAGATIONS]
    for each in chosen:
        scene.create(each.document)
    wrong = live(Stage(scene, room, pretend_nodes), chosen, still_seconds=STILL_SECONDS)
    assert wrong + judged(scene, chosen) == []

    (orphan,) = (each.name for each in chosen if each.name.endswith("orphan"))
    left = f"{orphan}-prepare-0"
    uid = scene.children[left]["metadata"]["uid"]
    scene.create(jobs.fine_tune_job(orphan, resources=jobs.ONLY_PREPARE))
    jobs.until(
        room,
        orphan,
        "the wait for the orphan",
        seconds=60,
        holds=lambda job: any(reason in str(job.get("status", {}).get("conditions")) for reason in WAITS),
    )
    scene.look()
    assert scene.children[left]["metadata"]["uid"] == uid
    scene.remove_orphans()
    job = jobs.until(
        room,
        orphan,
        "its own PREPARE",
        seconds=120,
        holds=lambda job: "startTime" in (job.get("status", {}).get("stage") or {}),
    )
    scene.look()
    (owner,) = scene.children[left]["metadata"]["ownerReferences"]
    assert owner["uid"] == job["metadata"]["uid"]
