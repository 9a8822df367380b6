"""Jobs of mixed fate at once, while the leader is killed again and again: each ends as it must, and nothing is left."""

from __future__ import annotations

import itertools
import math
import os
import time
from collections.abc import Iterator
from datetime import UTC, datetime

import pytest
from devcluster import product
from devcluster.kubectl import Kubectl
from devcluster.pretend_nodes import PretendNodes
from devcluster.provider import ProvidedCluster

from tests.support.chart import permissions, render
from tests.support.e2e import jobs
from tests.support.e2e.audit_log import read_requests
from tests.support.e2e.container_ends import ContainerEnds
from tests.support.e2e.fates import BAD_DATA, FATES, Life, Stage, judged, leaves_orphans, live, lives
from tests.support.e2e.leader_killer import LeaderKiller
from tests.support.e2e.leases import leads_one_of_two, until
from tests.support.e2e.scene import Scene
from tests.support.e2e.timeline import Departure, Timeline

pytestmark = [pytest.mark.cluster, pytest.mark.devcluster, pytest.mark.full]

CHOSEN = lives(os.environ.get("MIXED_FATES", "100"))
"""As many jobs as this variable says, or those with the fates that it names."""
PERIOD_SECONDS = 20.0
"""Time for which each leader leads."""
STILL_SECONDS = 420.0
"""Time in which something of every job changes. A busy machine needs more than a minute to start a replica, and nobody
leads meanwhile."""
STAGE_CPU = {stage: {"cpu": "800m"} for stage in ("prepare", "train", "merge")}
"""What a stage uses. Two run at once on two cores, and the kubelet finds time to tell of their ends."""
GONE_SECONDS = 2.0
"""The goal for a GPU pod under a leader. A busy machine may take longer, but never minutes."""
GENEROUS_SECONDS = 20.0
SHARES = (0.5, 0.9, 0.99)
ACCOUNT = f"system:serviceaccount:{product.SYSTEM_NAMESPACE}:{product.RELEASE}-finetune-operator"


@pytest.fixture
def replicas(operator: ProvidedCluster) -> Iterator[None]:
    product.install_chart(operator, {"replicas": 2, "trainer": {"resources": STAGE_CPU}})
    yield
    product.install_chart(operator)


def doubles(timeline: Timeline) -> list[str]:
    """Return the trainings that ran twice: pods of TRAIN of one workspace at one time, and Jobs of one name and owner."""
    pods = [pod for pod in timeline.pods.values() if pod.stage == "train"]
    found = [
        f"{one.name} and {other.name} ran at once"
        for one, other in itertools.combinations(pods, 2)
        if one.job == other.job and one.overlaps(other)
    ]
    names = [
        (metadata["name"], owner["uid"])
        for metadata in timeline.jobs.values()
        for owner in metadata.get("ownerReferences", [])
    ]
    return found + [
        f"Job {name} of {uid} was created twice" for name, uid in set(names) if names.count((name, uid)) > 1
    ]


def percentile(values: list[float], share: float) -> float:
    """Return the value that this share of the values does not exceed."""
    ordered = sorted(values)
    return ordered[math.ceil(share * len(ordered)) - 1] if ordered else 0.0


def departures(timeline: Timeline, killer: LeaderKiller) -> tuple[list[Departure], list[Departure]]:
    """Return how GPU pods were removed after their end: those that end under a leader, and all.

    Orphans do not count, because their user keeps them.
    """
    orphans = {life.name for life in CHOSEN if life.fate.judge is leaves_orphans}
    under, ended = [], []
    for pod in timeline.pods.values():
        counts = pod.stage == "train" and pod.job not in orphans
        if counts and pod.ended is not None and (departure := pod.departure) is not None:
            ended.append(departure)
            if killer.led(pod.ended, pod.ended + GONE_SECONDS):
                under.append(departure)
    return under, ended


def forbidden(provided: ProvidedCluster, since: datetime) -> list[str]:
    """Return the requests of the operator that no role allows, and print the verbs that it was granted and has not used."""
    log = provided.kubeconfig.parent / "log" / "audit.log"
    requests = [each for each in read_requests(log) if each.user == ACCOUNT and each.received >= since]
    used = {(each.group, each.resource, each.verb) for each in requests}
    unused = sorted(" ".join(each) for each in permissions(render()) - used)
    print(f"{len(requests)} requests of the operator in the audit log; granted and not used: {unused}")
    refused = {f"{each.verb} {each.resource}" for each in requests if not each.allowed}
    return [f"{each} must be granted or not be asked for" for each in sorted(refused)]


def test_every_job_ends_as_it_must_while_leaders_are_killed(
    workplace: Kubectl,
    kubectl: Kubectl,
    operator: ProvidedCluster,
    pretend_nodes: PretendNodes,
    replicas: None,
) -> None:
    del replicas
    assert workplace.namespace is not None
    until("two replicas, and one that leads", lambda: leads_one_of_two(kubectl), seconds=60)
    chosen = CHOSEN
    scene = Scene(workplace.kubeconfig, workplace.namespace)
    workplace.apply(jobs.config_map(BAD_DATA, "not json\n"))
    began, since = time.monotonic(), datetime.now(UTC)
    with (
        Timeline(workplace.kubeconfig, workplace.namespace) as timeline,
        ContainerEnds(operator.kubeconfig.with_name("containerd.sock")) as ends,
        LeaderKiller(kubectl, PERIOD_SECONDS) as killer,
    ):
        for life in chosen:
            life.uids.append(scene.create(life.document))
        stage = Stage(scene, workplace, pretend_nodes)
        wrong = live(stage, chosen, still_seconds=STILL_SECONDS)
        wrong += judged(scene, chosen)
    wrong += doubles(timeline)
    exact = timeline.use(ends.by_name())
    print(f"containerd told the ends of {exact} pods")
    assert exact, "containerd must tell when containers end"
    under, ended = departures(timeline, killer)
    print(f"{len(chosen)} jobs in {time.monotonic() - began:.0f} s, {killer.kills} leaders killed")
    print(f"{len(timeline.pods)} pods, {len(timeline.jobs)} Jobs")
    for what, group in (("under a leader", under), ("all", ended)):
        print(f"GPU pods gone after the end of their container, {what}: {len(group)}")
        for part in ("total", "report", "decision", "removal"):
            values = [getattr(departure, part) for departure in group]
            shown = ", ".join(f"p{100 * share:.0f} {percentile(values, share):.2f} s" for share in SHARES)
            print(f"  {part}: {shown}")
    scene.remove_orphans()
    workplace("delete", "finetunejobs", "--all", "--wait=true", "--timeout=120s")
    wrong += left_at_the_end(scene, chosen)
    wrong += forbidden(operator, since)
    assert not wrong, "\n".join(wrong)
    assert under or len(chosen) < len(FATES), "some GPU pods must have ended under a leader"
    assert percentile([departure.total for departure in under], 0.99) <= GENEROUS_SECONDS


def left_at_the_end(scene: Scene, chosen: list[Life]) -> list[str]:
    """Return what is left of any job, after all have been deleted."""
    deadline = time.monotonic() + 60
    while True:
        scene.look()
        left = [found for life in chosen for found in scene.left_of(life.name)]
        if not left or time.monotonic() > deadline:
            return [f"{found} must be gone" for found in left]
        time.sleep(1)
