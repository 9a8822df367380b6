"""FineTuneJobs as the store keeps them: small, because tens of thousands of them stay in the cluster.

Nothing is lost. A decision unpacks its job, which costs much less than the decision itself.

They are kept in Python's own binary form, which no other process ever sees. A start packs thousands of jobs, and JSON takes
five times as long.
"""

from __future__ import annotations

import marshal
import zlib
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from finetune_operator.api.conditions import Condition, Truth, find_condition
from finetune_operator.observed.observation import JobRecord, JobVersion

_RAW = -15
"""Deflate without a header, with the largest window."""
_FAST = 1
"""Other levels save a tenth of the bytes and cost half as much time again."""
_WINDOW = 32_768
"""Bytes before a text that deflate can refer to."""
_GROWTH = 1.5
"""A new dictionary is this much longer than the last one, so few are ever made."""


@dataclass(frozen=True, slots=True)
class PackedJob(JobVersion):
    """A FineTuneJob with its spec, status and labels compressed."""

    phase: str
    completed: datetime | None
    """Time at which it ended; None if it has not."""
    decided: bool
    """True if it has ended, and the status is that of a decision about the present spec, which leaves nothing to do."""
    lacks_gpu: bool
    """`JobRecord.lacks_gpu`."""
    packed: bytes
    dictionary: bytes
    """Text that the compression refers to. Most jobs share it."""

    def unpack(self) -> JobRecord:
        """The whole FineTuneJob."""
        inflate = zlib.decompressobj(_RAW, zdict=self.dictionary)
        spec, status, labels = marshal.loads(  # noqa: S302 -- written by this process
            inflate.decompress(self.packed)
        )
        return JobRecord(
            self.namespace,
            self.name,
            self.uid,
            self.generation,
            self.resource_version,
            self.created,
            self.deleting,
            spec,
            status,
            labels,
        )


StoredJob = JobRecord | PackedJob


class Packer:
    """Packs jobs. One job is the dictionary of many others, because jobs are much alike."""

    def __init__(self) -> None:
        self._dictionary = b""

    def pack(self, job: JobRecord) -> StoredJob:
        """The small form of `job`, or `job` itself if it holds what cannot be packed."""
        text = _text(job.spec, job.status, job.labels)
        if text is None:
            return job
        # The status of a job grows over its life, and the words of a later stage are not in an earlier dictionary.
        if min(len(text), _WINDOW) > _GROWTH * len(self._dictionary):
            self._dictionary = text[:_WINDOW]
        deflate = zlib.compressobj(_FAST, wbits=_RAW, zdict=self._dictionary)
        completed = job.completed
        return PackedJob(
            job.namespace,
            job.name,
            job.uid,
            job.generation,
            job.resource_version,
            job.created,
            job.deleting,
            job.phase,
            completed,
            completed is not None and _is_decided(job),
            job.lacks_gpu,
            deflate.compress(text) + deflate.flush(),
            self._dictionary,
        )


def unpacked(job: StoredJob) -> JobRecord:
    """The whole FineTuneJob."""
    return job.unpack() if isinstance(job, PackedJob) else job


def _is_decided(job: JobRecord) -> bool:
    """False also while it is open what destinations and trackers get of a job that has ended.

    The pod that sends it may not exist yet: a process that dies between the status and the pod must go on with it.
    """
    status = job.status
    states = {
        find_condition(status, each).get("status") for each in (Condition.REPORT_PUBLISHED, Condition.TRACKED)
    }
    return status.get("observedGeneration") == job.generation and Truth.UNKNOWN not in states


def _text(*parts: Any) -> bytes | None:
    try:
        return marshal.dumps(parts)
    except ValueError:
        return None
