"""Writes the status of a job with its Events, or a smaller status if the API server refuses it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from finetune_operator.cluster.informer import Informer
from finetune_operator.cluster.resources import Cluster
from finetune_operator.errors import StatusRefusedError
from finetune_operator.observed.observation import JobRecord, Key
from finetune_operator.status.events import Transition, transitions
from finetune_operator.status.reduced import RECORD, refused_members, without_refused

MEMORY = timedelta(minutes=10)
"""Time for which a refused value is not sent again."""
TRIES = 3
"""The status, one without the members that the API server names, and one that only says what happened."""

RecordEvent = Callable[[JobRecord, Transition], None]

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Refused:
    """The members of one job's status that the API server has refused, with their values."""

    uid: str
    members: Mapping[str, Any]
    message: str
    since: datetime


class StatusWriter:
    """Remembers refused values, so that they are not sent again and again."""

    def __init__(
        self,
        cluster: Cluster,
        informer: Informer,
        now: Callable[[], datetime],
        record_event: RecordEvent,
    ) -> None:
        """`now` is the wall clock in UTC. `record_event` accepts an Event and returns at once."""
        self._cluster = cluster
        self._informer = informer
        self._now = now
        self._record_event = record_event
        self._refused: dict[Key, _Refused] = {}

    async def write(self, job: JobRecord, wanted: Mapping[str, Any]) -> bool:
        """Write `wanted` unless it is stored already; returns False if a part of the record cannot be written."""
        for _ in range(TRIES):
            status = self._reduce(job, wanted)
            if status == job.status:
                return not self._holds_record(job, wanted)
            try:
                await self._send(job, status)
            except StatusRefusedError as error:
                _logger.warning("%s/%s: the API server refused its status: %s", *job.key, error)
                self._note(job, wanted, error)
            else:
                return not self._holds_record(job, wanted)
        return False

    def _holds_record(self, job: JobRecord, wanted: Mapping[str, Any]) -> bool:
        refused = self._known(job)
        held = {} if refused is None else refused.members
        return any(wanted.get(name) == value for name, value in held.items() if name in RECORD)

    def forget(self, key: Key) -> None:
        """Forget a job that does not exist any more."""
        self._refused.pop(key, None)

    def _note(self, job: JobRecord, wanted: Mapping[str, Any], error: StatusRefusedError) -> None:
        """Remember what was refused."""
        known = self._known(job)
        before = {} if known is None else known.members
        found = refused_members(error.fields, self._reduce(job, wanted), job.status)
        members = {**before, **{name: wanted[name] for name in found if name in wanted}}
        self._refused[job.key] = _Refused(job.uid, members, str(error), self._now())

    def _known(self, job: JobRecord) -> _Refused | None:
        """What was refused lately. It is tried again after a while, because the CRD may have changed."""
        known = self._refused.get(job.key)
        if known is None or known.uid != job.uid or self._now() - known.since > MEMORY:
            return None
        return known

    def _reduce(self, job: JobRecord, wanted: Mapping[str, Any]) -> dict[str, Any]:
        refused = self._known(job)
        members, message = ({}, "") if refused is None else (refused.members, refused.message)
        return without_refused(wanted, job.status, members, message, job.generation, self._now())

    async def _send(self, job: JobRecord, status: Mapping[str, Any]) -> None:
        stored = await self._cluster.write_status(job, status)
        self._informer.put_job(stored)
        for transition in transitions(job.status, status):
            _logger.info("%s/%s: %s: %s", job.namespace, job.name, transition.reason, transition.message)
            self._record_event(job, transition)
