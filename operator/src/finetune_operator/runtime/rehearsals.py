"""Lets the API server check the objects of a new job (`dryRun=All`) if its user has settings that are new to the process."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from datetime import datetime

from finetune_operator.api.spec import FineTuneJobSpec
from finetune_operator.api.stages import Stage
from finetune_operator.api.stored import read_stored
from finetune_operator.cluster.resources import Cluster
from finetune_operator.lifecycle.rehearsal import rehearsal_objects, settings_digest
from finetune_operator.observed.observation import JobRecord, Observation
from finetune_operator.settings import Settings

MAXIMUM_KNOWN = 4096


class Rehearsals:
    """Remembers which settings the API server has checked in which namespace."""

    def __init__(self, cluster: Cluster, settings: Settings, now: Callable[[], datetime]) -> None:
        """`now` is the wall clock in UTC."""
        self._cluster = cluster
        self._settings = settings
        self._now = now
        self._known: dict[tuple[str, str], str | None] = {}
        self._asking: dict[tuple[str, str], asyncio.Lock] = {}

    async def refusal(self, observation: Observation) -> str | None:
        """Why an object of the observed job is invalid; None if none is, or if the job has started.

        Only an invalid object counts. A quota or a policy may have changed when the object is really created.
        """
        job = observation.job
        if job.deleting or observation.children or not _is_new(job):
            return None
        stored = read_stored(job.spec)
        if stored.spec is None or stored.violation:
            return None
        digest = settings_digest(stored.spec)
        if not digest:
            return None
        known = (job.namespace, digest)
        # Many new jobs with the same settings come at once: one of them asks, and the others wait for its answer.
        lock = self._asking.setdefault(known, asyncio.Lock())
        try:
            async with lock:
                if known not in self._known:
                    found = await self._rehearse(job, stored.spec)
                    if len(self._known) >= MAXIMUM_KNOWN:
                        self._known.clear()
                    self._known[known] = found
                return self._known[known]
        finally:
            self._asking.pop(known, None)

    async def _rehearse(self, job: JobRecord, spec: FineTuneJobSpec) -> str | None:
        bodies = rehearsal_objects(job, spec, self._settings, self._now())
        # Together, because the first Job waits for them, and the API server is slow while many jobs come.
        answers = await asyncio.gather(
            *(self._cluster.rehearse(job, body) for body in bodies), return_exceptions=True
        )
        for answer in answers:
            if isinstance(answer, BaseException):
                raise answer
            if answer is not None:
                return answer
        return None


def _is_new(job: JobRecord) -> bool:
    """True until the first Job of a job has been seen."""
    stage = job.status.get("stage") or {}
    begun = (
        not isinstance(stage, Mapping)
        or "startTime" in stage
        or stage.get("name", Stage.PREPARE) != Stage.PREPARE
    )
    return not begun and not job.status.get("attempts") and "completionTime" not in job.status
