"""Writes the status of a job with its Events, or a smaller status if the API server refuses it."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from finetune_operator.cluster.informer import Informer
from finetune_operator.cluster.resources import Cluster
from finetune_operator.errors import StatusRefusedError
from finetune_operator.observed.observation import JobRecord, Key
from finetune_operator.status.events import transitions
from finetune_operator.status.reduced import RECORD, refused_members, without_refused

TRIES = 3
"""The status, one without the members that the API server names, and one that only says what happened."""

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Refused:
    """The members of one job's status that the API server has refused, with their values."""

    uid: str
    members: Mapping[str, Any]
    message: str


class StatusWriter:
    """Remembers refused values, so that they are not sent again and again."""

    def __init__(self, cluster: Cluster, informer: Informer, now: Callable[[], datetime]) -> None:
        """`now` is the wall clock in UTC."""
        self._cluster = cluster
        self._informer = informer
        self._now = now
        self._refused: dict[Key, _Refused] = {}

    async def write(self, job: JobRecord, wanted: Mapping[str, Any]) -> bool:
        """Write `wanted` unless it is stored already; returns False if a part of the record cannot be written."""
        for _ in range(TRIES):
            status = self._reduce(job, wanted)
            if status == job.status:
                return not self._holds_record(job.key, wanted)
            try:
                await self._send(job, status)
            except StatusRefusedError as error:
                _logger.warning("%s/%s: the API server refused its status: %s", *job.key, error)
                self._note(job, wanted, error)
            else:
                return not self._holds_record(job.key, wanted)
        return False

    def _holds_record(self, key: Key, wanted: Mapping[str, Any]) -> bool:
        refused = self._refused.get(key)
        held = {} if refused is None else refused.members
        return any(wanted.get(name) == value for name, value in held.items() if name in RECORD)

    def forget(self, key: Key) -> None:
        """Forget a job that does not exist any more."""
        self._refused.pop(key, None)

    def _note(self, job: JobRecord, wanted: Mapping[str, Any], error: StatusRefusedError) -> None:
        """Remember what was refused."""
        known = self._refused.get(job.key)
        before = known.members if known is not None and known.uid == job.uid else {}
        found = refused_members(error.fields, self._reduce(job, wanted), job.status)
        members = {**before, **{name: wanted[name] for name in found if name in wanted}}
        self._refused[job.key] = _Refused(job.uid, members, str(error))

    def _reduce(self, job: JobRecord, wanted: Mapping[str, Any]) -> dict[str, Any]:
        known = self._refused.get(job.key)
        refused = known if known is not None and known.uid == job.uid else None
        members, message = ({}, "") if refused is None else (refused.members, refused.message)
        return without_refused(wanted, job.status, members, message, job.generation, self._now())

    async def _send(self, job: JobRecord, status: Mapping[str, Any]) -> None:
        stored = await self._cluster.write_status(job, status)
        self._informer.put_job(stored)
        for transition in transitions(job.status, status):
            _logger.info("%s/%s: %s: %s", job.namespace, job.name, transition.reason, transition.message)
            await self._cluster.record_event(job, transition, self._now(), secrets.token_hex(8))
