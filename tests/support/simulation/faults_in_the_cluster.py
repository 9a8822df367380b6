"""Faults of users, children, nodes and operators."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from finetune_operator.api.stages import ATTEMPT_LABEL, JOB_LABEL, STAGE_LABEL

from tests.support.simulation.controllers import ENDED, is_finished
from tests.support.simulation.fault_kinds import End, fault, nothing
from tests.support.simulation.faults_on_the_way import strike_requests
from tests.support.simulation.network import Request
from tests.support.simulation.server import (
    CHILDREN,
    CLAIMS,
    JOBS,
    NODES,
    PODS,
    Body,
)

if TYPE_CHECKING:
    from tests.support.simulation.life import Life


USERS_CLAIMS = ("models", "artifacts")
"""Claims that the users have made."""

# -- users -------------------------------------------------------------------------------------------------------


def _some(life: Life, draw: random.Random, plural: str) -> Body | None:
    found = life.server.all(plural)
    found = [body for body in found if JOB_LABEL in body["metadata"].get("labels", {}) or plural == JOBS]
    return draw.choice(found) if found else None


@fault("status lost")
def _lose_status(life: Life, draw: random.Random) -> End | None:
    job = _some(life, draw, JOBS)
    if job is None:
        return None
    life.checks.forget_status(job["metadata"]["uid"])
    life.server.change(JOBS, job, status={})
    return nothing


@fault("FineTuneJob deleted")
def _delete_job(life: Life, draw: random.Random) -> End | None:
    job = _some(life, draw, JOBS)
    if job is None:
        return None
    life.server.delete(JOBS, job, propagation=draw.choice(PROPAGATIONS))
    return lambda: _remove_orphans(life)


@fault("namesake", longest=20.0)
def _namesake(life: Life, draw: random.Random) -> End | None:
    job = _some(life, draw, JOBS)
    if job is None:
        return None
    life.server.delete(JOBS, job, propagation=draw.choice(PROPAGATIONS))
    life.recreate(job, draw.uniform(0.0, 15.0))
    return lambda: _remove_orphans(life)


@fault("user suspends", longest=120.0)
def _suspend(life: Life, draw: random.Random) -> End | None:
    job = _some(life, draw, JOBS)
    if job is None:
        return None

    def set_suspend(*, suspend: bool) -> None:
        present = life.server.current(JOBS, job)
        if present is not None:
            life.server.change(JOBS, present, spec={**present["spec"], "suspend": suspend})

    set_suspend(suspend=True)
    return lambda: set_suspend(suspend=False)


PROPAGATIONS = ("Background", "Background", "Foreground", "Orphan")


def _remove_orphans(life: Life) -> None:
    """Let a user tidy up what a deletion without dependents has left."""
    for plural in (CHILDREN, PODS, CLAIMS):
        for body in life.server.all(plural):
            metadata = body["metadata"]
            if not metadata.get("ownerReferences") and metadata["name"] not in USERS_CLAIMS:
                life.server.delete(plural, body)


# -- children ----------------------------------------------------------------------------------------------------


@fault("Job deleted")
def _delete_child(life: Life, draw: random.Random) -> End | None:
    child = _some(life, draw, CHILDREN)
    if child is None:
        return None
    life.server.delete(CHILDREN, child, propagation=draw.choice(PROPAGATIONS))
    return lambda: _remove_orphans(life)


@fault("pod deleted")
def _delete_pod(life: Life, draw: random.Random) -> End | None:
    pod = _some(life, draw, PODS)
    if pod is None:
        return None
    life.server.delete(PODS, pod)
    return nothing


@fault("pod evicted")
def _evict(life: Life, draw: random.Random) -> End | None:
    pod = _some(life, draw, PODS)
    if pod is None:
        return None
    life.nodes.evict(pod)
    return nothing


@fault("label removed", harmless=True)
def _unlabel(life: Life, draw: random.Random) -> End | None:
    plural = draw.choice([CHILDREN, PODS, CLAIMS])
    body = _some(life, draw, plural)
    if body is None:
        return None
    labels = {key: value for key, value in body["metadata"]["labels"].items() if key != JOB_LABEL}
    life.server.change(plural, body, metadata={"labels": labels})
    return nothing


@fault("Job suspended by somebody else", longest=120.0)
def _suspend_child(life: Life, draw: random.Random) -> End | None:
    child = _some(life, draw, CHILDREN)
    if child is None or is_finished(child) or child["spec"].get("suspend"):
        return None
    life.server.change(CHILDREN, child, spec={**child["spec"], "suspend": True})
    uid = child["metadata"]["uid"]
    life.checks.suspended.add(uid)

    def end() -> None:
        life.checks.suspended.discard(uid)
        present = life.server.current(CHILDREN, child)
        if present is not None:
            life.server.change(CHILDREN, present, spec={**present["spec"], "suspend": False})

    return end


@fault("pods never start", longest=900.0, harmless=True)
def _break_images(life: Life, draw: random.Random) -> End:
    del draw
    life.nodes.broken = True

    def end() -> None:
        life.nodes.broken = False
        life.nodes.retry()

    return end


@fault("foreign objects with the label", longest=120.0, harmless=True)
def _label_foreign_objects(life: Life, draw: random.Random) -> End | None:
    """A Job, its pod that hangs on a lost node, and a claim: somebody has given them the operator's label."""
    job = _some(life, draw, JOBS)
    if job is None or life.server.get(CHILDREN, job["metadata"]["namespace"], "report") is not None:
        return None
    namespace, server = job["metadata"]["namespace"], life.server
    labels = {JOB_LABEL: job["metadata"]["name"], STAGE_LABEL: "train", ATTEMPT_LABEL: "7"}
    complete = {"conditions": [{"type": "Complete", "status": "True"}]}
    owner = server.create(
        CHILDREN,
        {"metadata": {"name": "report", "labels": labels}, "spec": {}, "status": complete},
        namespace,
    )
    reference = {"kind": "Job", "name": "report", "uid": owner["metadata"]["uid"], "controller": True}
    metadata = {
        "name": "report-x",
        "labels": labels,
        "ownerReferences": [reference],
        "deletionTimestamp": server.stamp(),
    }
    spec = {"nodeName": "gone", "containers": [{"name": "report", "resources": {}}], "volumes": []}
    made = [
        (CHILDREN, owner),
        (
            PODS,
            server.create(
                PODS, {"metadata": metadata, "spec": spec, "status": {"phase": "Running"}}, namespace
            ),
        ),
        (
            CLAIMS,
            server.create(CLAIMS, {"metadata": {"name": "report", "labels": labels}, "spec": {}}, namespace),
        ),
    ]

    def end() -> None:
        for plural, body in made:
            present = server.current(plural, body)
            if present is not None:
                server.remove(plural, present)

    return end


# -- nodes -------------------------------------------------------------------------------------------------------


def _busy_node(life: Life, draw: random.Random) -> Body:
    used = {
        pod["spec"].get("nodeName") for pod in life.server.all(PODS) if pod["status"]["phase"] not in ENDED
    }
    nodes = life.server.all(NODES)
    return draw.choice([node for node in nodes if node["metadata"]["name"] in used] or nodes)


@fault("node deleted", longest=120.0)
def _delete_node(life: Life, draw: random.Random) -> End:
    node = _busy_node(life, draw)
    life.server.remove(NODES, node)
    return lambda: life.join_node(node)


@fault("node cut off, then shut down", longest=200.0)
def _shut_down(life: Life, draw: random.Random) -> End:
    node = _busy_node(life, draw)
    name = node["metadata"]["name"]
    life.nodes.cut_off(name)
    later = life.loop.call_later(draw.uniform(1.0, 100.0), life.nodes.shut_down, name)

    def end() -> None:
        later.cancel()
        life.join_node(node)

    return end


@fault("node cut off", longest=200.0)
def _cut_off(life: Life, draw: random.Random) -> End:
    name = _busy_node(life, draw)["metadata"]["name"]
    life.nodes.cut_off(name)
    return lambda: life.nodes.rejoin(name)


# -- operators ---------------------------------------------------------------------------------------------------


@fault("operator killed", harmless=True)
def _kill(life: Life, draw: random.Random) -> End | None:
    if not life.deployment.operators:
        return None
    draw.choice(life.deployment.operators).kill()
    return nothing


@fault("operator killed at a write", harmless=True)
def _kill_at_write(life: Life, draw: random.Random) -> End:
    left, moment = draw.randint(1, 6), draw.choice(["before", "after"])

    def strike(request: Request) -> bool:
        nonlocal left
        if left == 0 or not request.writes or "/leases" in request.path:
            return False
        left -= 1
        request.kill = moment if left == 0 else ""
        return left == 0

    return strike_requests(life, strike)


@fault("leader stopped beyond its Lease", longest=60.0, replicas=2, harmless=True)
def _stop_leader(life: Life, draw: random.Random) -> End | None:
    leaders = [each for each in life.deployment.operators if each.leads]
    if not leaders:
        return None
    leader = draw.choice(leaders)
    life.loop.stop_owner(leader)
    return lambda: life.loop.continue_owner(leader)
