"""One life: real operators on virtual time beside the models of everything else, from a seed to its end."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

from finetune_operator.api.stages import GROUP, KIND, VERSION
from finetune_operator.cluster import leader_election
from finetune_operator.observed import inventory
from finetune_operator.settings import Settings, TrainerSettings
from finetune_operator.sizing.decision import Feasible, Infeasible, decide_training
from finetune_operator.sizing.gpus.gpu import Offer
from finetune_operator.sizing.request import SizingRequest

from tests.support.operator import NOW
from tests.support.simulation.checks import Checks
from tests.support.simulation.controllers import Controllers
from tests.support.simulation.faults import FAULTS, USERS_CLAIMS
from tests.support.simulation.kubelet import Nodes
from tests.support.simulation.loop import VirtualLoop
from tests.support.simulation.network import Network
from tests.support.simulation.operators import Deployment
from tests.support.simulation.plan import Plan, PlannedFault, PlannedJob
from tests.support.simulation.randomness import stream
from tests.support.simulation.server import CLAIMS, CLASSES, JOBS, NODES, Body, Server
from tests.support.simulation.trainers import Trainers

LIMIT_SECONDS = 3 * 3600.0
"""Time in which every job must have ended after the last fault: longer than every back-off."""
LOOK_SECONDS = 5.0
"""Time between two looks at whether everything has ended."""
_TRAINER = TrainerSettings(image="registry.example/finetune/trainer:1", device="cuda")
ALONE = Settings.model_validate(
    {"trainer": _TRAINER, "workers": 2, "leaderElection": {"enabled": False}, "progressSeconds": 10}
)
ELECTED = ALONE.model_copy(
    update={"leader_election": ALONE.leader_election.model_copy(update={"enabled": True})}
)


@dataclass(frozen=True)
class Outcome:
    """What a life has shown."""

    plan: Plan
    violations: tuple[str, ...]
    trace: tuple[tuple[Any, ...], ...]
    phases: Counter[str]
    hits: Counter[str]
    """How often each kind of fault has had an effect."""
    seconds: float
    """Virtual time."""
    work: float = 0.0
    """Seconds of a processor, if they were measured."""

    def report(self, lines: int = 400) -> str:
        """The plan, the violations and the last `lines` of the trace."""
        shown = [f"{time:10.3f} {' '.join(map(str, words))}" for time, *words in self.trace[-lines:]]
        return "\n".join([str(self.plan), *self.violations, *shown])


class Life:
    """The parts of one life. Everything that is drawn comes from its seed."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.start = NOW
        self.loop = VirtualLoop()
        self.trace: list[tuple[Any, ...]] = []
        self.settings = ALONE if plan.replicas == 1 else ELECTED
        self.skew = 0.0
        self.random = stream("life", plan.seed)
        self.server = Server(self.loop.time, self.start)
        self.network = Network(stream("network", plan.seed))
        self.trainers = Trainers(
            stream("trainers", plan.seed), {key: list(each) for key, each in plan.fates.items()}
        )
        self.controllers = Controllers(self.server, self.loop, stream("controllers", plan.seed))
        self.nodes = Nodes(self.server, self.loop, self.trainers, stream("nodes", plan.seed))
        self.checks = Checks(self)
        self.deployment: Deployment
        self.hits: Counter[str] = Counter()
        """How often each kind of fault has had an effect."""
        self.beginning = ""
        """The kind of the fault that begins now."""
        self._pending = 0
        """Users and faults that have not acted yet."""

    def note(self, *words: Any) -> None:
        """Add a line to the trace."""
        self.trace.append((self.loop.time(), *words))

    def run(self) -> Outcome:
        """Live."""
        with _observed(self), patch.object(secrets, "randbits", self.random.getrandbits):
            try:
                self.loop.run_until_complete(self._live())
            except RuntimeError as error:
                self.checks.violations.append(str(error))
            finally:
                self.loop.close()
        jobs = self.server.all(JOBS)
        phases = Counter((job.get("status") or {}).get("phase", "none") for job in jobs)
        return Outcome(
            self.plan, tuple(self.checks.violations), tuple(self.trace), phases, self.hits, self.loop.time()
        )

    async def _live(self) -> None:
        self._furnish()
        self.deployment = Deployment(self, self.plan.replicas)
        for job in self.plan.jobs:
            self._at(job.time, self._create, job)
        for number, fault in enumerate(self.plan.faults):
            self._at(fault.time, self._begin, fault, number)
        try:
            await self._until(lambda: not self._pending, float("inf"))
            await self._until(lambda: not self.checks.unfinished(), self.loop.time() + LIMIT_SECONDS)
            # What comes after the end must change nothing.
            await asyncio.sleep(LOOK_SECONDS)
            if not self.checks.violations:
                self._check_end()
        finally:
            await self.deployment.close()

    def _check_end(self) -> None:
        for each in self.checks.unfinished():
            self.checks.require(False, f"{each} {LIMIT_SECONDS:.0f} s after the last fault")
        for each in self.checks.wasted() if self.plan.harmless else ():
            self.checks.require(False, each)

    async def _until(self, ended: Callable[[], bool], limit: float) -> None:
        """Wait until something has ended, or until the limit or the first violation."""
        while not (ended() or self.checks.violations) and self.loop.time() < limit:  # noqa: ASYNC110 -- a look on virtual time costs nothing
            await asyncio.sleep(LOOK_SECONDS)

    def _furnish(self) -> None:
        """Create what an administrator and the users have before any job."""
        for name, gpus in (("cpu1", 0), ("gpu1", 1), ("gpu2", 2)):
            self.server.create(NODES, node_body(name, gpus))
        self.server.create(
            CLASSES, {"metadata": {"name": "standard"}, "volumeBindingMode": "WaitForFirstConsumer"}
        )
        for name in USERS_CLAIMS:
            spec = {"accessModes": ["ReadWriteMany"]}
            body = {"metadata": {"name": name}, "spec": spec, "status": {"phase": "Bound"}}
            self.server.create(CLAIMS, body, "team")

    def _at(self, time: float, action: Any, *arguments: Any) -> None:
        """Let somebody act at a time, for which the end of the life waits."""
        self._pending += 1

        def act() -> None:
            self._pending -= 1
            action(*arguments)

        self.loop.call_at(time, act)

    def _create(self, job: PlannedJob) -> None:
        held = self.server.get(JOBS, *job.key)
        if held is not None:
            if "deletionTimestamp" in held["metadata"]:
                # It waits for its dependents.
                self._at(self.loop.time() + 5.0, self._create, job)
            return
        body = {"apiVersion": f"{GROUP}/{VERSION}", "kind": KIND, "metadata": {"name": job.key[1]}}
        self.server.create(JOBS, {**body, "spec": job.spec, "status": {}}, job.key[0])
        self.note("create", job.key[1])

    def recreate(self, job: Body, seconds: float) -> None:
        """Create a FineTuneJob of the same name and spec after some seconds."""
        key = (job["metadata"]["namespace"], job["metadata"]["name"])
        planned = PlannedJob(key, 0.0, {**job["spec"], "suspend": False})
        self._at(self.loop.time() + seconds, self._create, planned)

    def join_node(self, node: Body) -> None:
        """Let a node of this name join anew."""
        name, allocatable = node["metadata"]["name"], node["status"]["allocatable"]
        held = self.server.get(NODES, "", name)
        if held is not None:
            self.server.remove(NODES, held)
        self.server.create(NODES, node_body(name, int(allocatable.get("nvidia.com/gpu", "0"))))
        self.nodes.rejoin(name)

    def _begin(self, fault: PlannedFault, number: int) -> None:
        self.beginning, strikes = fault.kind, len(self.network.strikes)
        end = FAULTS[fault.kind].begin(self, stream(f"fault {number}", self.plan.seed))
        self.note("FAULT", fault.kind, "" if end is not None else "has nothing to hit")
        if end is None:
            return
        # What strikes at requests counts them itself.
        self.hits[fault.kind] += strikes == len(self.network.strikes)

        def finish() -> None:
            self.note("END", fault.kind)
            end()

        self._at(self.loop.time() + fault.seconds, finish)


def node_body(name: str, gpus: int) -> Body:
    """A node, with GPUs as GPU feature discovery labels it."""
    labels = {"kubernetes.io/hostname": name, "kubernetes.io/os": "linux"}
    allocatable = {"cpu": "64", "memory": "256Gi", "ephemeral-storage": "500Gi"}
    if gpus:
        facts = {"product": "NVIDIA-L4", "memory": "23034", "count": str(gpus), "compute.major": "8"}
        labels |= {f"nvidia.com/gpu.{key}": value for key, value in {**facts, "compute.minor": "9"}.items()}
        allocatable["nvidia.com/gpu"] = str(gpus)
    conditions = [{"type": "Ready", "status": "True"}]
    return {
        "metadata": {"name": name, "labels": labels},
        "spec": {},
        "status": {"allocatable": allocatable, "conditions": conditions},
    }


class _Tracebacks(logging.Handler):
    """Makes a violation of every traceback in the log."""

    def __init__(self, life: Life) -> None:
        super().__init__(logging.ERROR)
        self._life = life

    def emit(self, record: logging.LogRecord) -> None:
        """Take in one record."""
        if record.exc_info:
            error = record.exc_info[1]
            self._life.checks.require(False, f"no traceback may be logged: {record.getMessage()}: {error!r}")


_sizings: dict[str, Feasible | Infeasible] = {}


def _remembered_sizing(
    request: SizingRequest,
    offers: Sequence[Offer],
    others: Callable[[], Sequence[Offer]],
    *,
    brief: bool,
) -> Feasible | Infeasible:
    """`sizing.decision.decide_training`, which takes a tenth of a life, computed once for equal arguments."""
    key = repr((request, offers, brief))
    found = _sizings.get(key)
    if found is None:
        found = _sizings[key] = decide_training(request, offers, others, brief=brief)
    return found


@contextmanager
def _observed(life: Life) -> Iterator[None]:
    """Watch the logs of the operator and of asyncio, and make times and random numbers those of the life."""
    handler = _Tracebacks(life)
    loggers = [logging.getLogger(name) for name in ("finetune_operator", "asyncio")]
    before = [(each.level, each.propagate) for each in loggers]
    for each in loggers:
        each.addHandler(handler)
        each.setLevel(logging.ERROR)
        each.propagate = False

    def micro_time() -> str:
        return f"{life.server.stamp()[:-1]}.{int(life.loop.time() * 1e6) % 1_000_000:06d}Z"

    try:
        with (
            patch.object(leader_election, "_micro_time", micro_time),
            patch.object(inventory, "decide_training", _remembered_sizing),
        ):
            yield
    finally:
        for each, (level, propagate) in zip(loggers, before, strict=True):
            each.removeHandler(handler)
            each.setLevel(level)
            each.propagate = propagate


def live(plan: Plan) -> Outcome:
    """Live one life."""
    return Life(plan).run()
