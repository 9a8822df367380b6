"""The operator's processes: real replicas that are started, killed, stopped and restarted."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Iterator
from datetime import timedelta
from functools import lru_cache
from typing import TYPE_CHECKING

from finetune_operator.cluster.informer import Informer
from finetune_operator.errors import ApiError
from finetune_operator.observed.observation import Key
from finetune_operator.observed.urgency import Urgency
from finetune_operator.runtime.health import Role
from finetune_operator.runtime.metrics import OperatorMetrics
from finetune_operator.runtime.replica import Edges, Replica
from prometheus_client import CollectorRegistry

from tests.support.simulation.loop import OWNER, Owner
from tests.support.simulation.network import SimulatedApi, Watches

if TYPE_CHECKING:
    from tests.support.simulation.life import Life

LONGEST_REQUEUE = 7 * 24 * 3600.0


@lru_cache(maxsize=1)
def _metrics() -> OperatorMetrics:
    """The series of all lives together, because a registry is expensive."""
    return OperatorMetrics(CollectorRegistry())


class Operator(Owner):
    """One process from its start to its end."""

    def __init__(self, life: Life, identity: str) -> None:
        super().__init__()
        self._life = life
        self.identity = identity
        self.alive = True
        self.skew = 0.0
        """Seconds by which the wall clock of its node is wrong."""
        self.deleted: set[str] = set()
        """uids of FineTuneJobs whose deletion its watch has delivered."""
        self.watches: Watches | None = None
        self.context = contextvars.copy_context()
        self.context.run(OWNER.set, self)
        self.replica: Replica | None = None
        self.task = life.loop.create_task(self._run(), context=self.context)

    @property
    def leads(self) -> bool:
        """True if it acts as the leader, whether or not it holds the Lease."""
        return self.replica is not None and self.replica.vitals().role is Role.LEADER

    def kill(self) -> None:
        """End at once (SIGKILL): nothing that it wants to do afterwards has an effect."""
        self.alive = False
        self._life.loop.continue_owner(self)
        if self.watches is not None:
            self.watches.close()
        self.cancel_all()

    async def _run(self) -> None:
        life = self._life
        settings = life.settings
        self.replica = Replica(
            settings, _metrics(), life.loop.time, identity=self.identity, namespace="operators"
        )
        self._watch_requeues(self.replica)
        api = SimulatedApi(life, self, qps=settings.client.qps, burst=settings.client.burst)
        edges = Edges(
            api=api,
            fetch=life.nodes.fetch,
            watch=self._watch,
            abort=self.kill,
            now=lambda: life.start + timedelta(seconds=life.loop.time() + self.skew),
        )
        await self.replica.run(edges, asyncio.Event())

    def _watch_requeues(self, replica: Replica) -> None:
        """Check the delay of every key that is queued for later."""
        add_after = replica.queue.add_after

        def checked(item: Key, delay: float, urgency: Urgency = Urgency.PROGRESS) -> None:
            self._life.checks.require(
                0 <= delay <= LONGEST_REQUEUE,
                f"{item} must be decided again in finite time, not in {delay} s",
            )
            add_after(item, delay, urgency)

        replica.queue.add_after = checked  # type: ignore[method-assign]  # observed, not replaced

    async def _watch(self, informer: Informer) -> None:
        self.watches = Watches(self._life, self, informer)
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            self.watches.close()


class Deployment:
    """Keeps the wanted number of operators running."""

    def __init__(self, life: Life, replicas: int) -> None:
        self._life = life
        self._number = 0
        self.operators: list[Operator] = []
        self._past: list[Operator] = []
        self._closed = False
        for _ in range(replicas):
            self._start()

    def _start(self) -> None:
        if self._closed:
            return
        self._number += 1
        operator = Operator(self._life, f"operator-{self._number}")
        operator.skew = self._life.skew
        self.operators.append(operator)
        operator.task.add_done_callback(lambda _task: self._ended(operator))
        self._life.note("start", operator.identity)

    def _ended(self, operator: Operator) -> None:
        self.operators.remove(operator)
        self._past.append(operator)
        if not self._closed:
            error = None if operator.task.cancelled() else operator.task.exception()
            for each in _leaves(error):
                self._life.checks.require(
                    isinstance(each, ApiError), f"{operator.identity} must not end with {each!r}"
                )
            operator.kill()
            self._life.note("end", operator.identity, repr(error))
            self._life.loop.call_later(self._life.random.uniform(0.5, 8.0), self._start)

    async def close(self) -> None:
        """End all operators and wait for their tasks."""
        self._closed = True
        for operator in list(self.operators):
            operator.kill()
        tasks = [task for operator in (*self.operators, *self._past) for task in operator.tasks]
        await asyncio.gather(*tasks, return_exceptions=True)


def _leaves(error: BaseException | None) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for each in error.exceptions:
            yield from _leaves(each)
    elif error is not None:
        yield error
