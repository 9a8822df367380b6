"""Keeps TRAIN's last numbers as long as its job has series, so that a scrape sees the end of each curve."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime

from finetune_operator.api.stages import Stage
from finetune_operator.cluster.store import Store
from finetune_operator.cluster.store_entry import Entry
from finetune_operator.contract.result import Progress
from finetune_operator.observed.activity import TRAINING, JobActivity, LastTraining, remember
from finetune_operator.observed.observation import Key
from finetune_operator.observed.packed import StoredJob


@dataclass(frozen=True, slots=True)
class _Report:
    progress: Progress
    training: LastTraining | None


class Activities:
    """The last reports of all trainers. Use it on the event loop only."""

    def __init__(self, store: Store) -> None:
        """`store` has the jobs and their pods."""
        self._store = store
        self._reports: dict[str, _Report] = {}

    def __len__(self) -> int:
        return len(self._reports)

    def report(self, uid: str, progress: Progress) -> None:
        """The trainer of the FineTuneJob with this uid has reported."""
        last = self._reports.get(uid)
        self._reports[uid] = _Report(progress, remember(None if last is None else last.training, progress))

    def forget_others(self, jobs: Collection[StoredJob]) -> None:
        """Keep no reports but those of these jobs, which are all that have series."""
        shown = {job.uid for job in jobs}
        self._reports = {uid: report for uid, report in self._reports.items() if uid in shown}

    def of(self, jobs: Collection[StoredJob]) -> list[JobActivity]:
        """The activities of `jobs`, which are all that have series."""
        running: dict[Key, set[tuple[Stage, int]]] = {}
        for job, child, _ in self._store.running_pods():
            running.setdefault(job.key, set()).add((child.stage, child.attempt))
        ended = _ended_pods(self._store.busy())
        found = []
        for each in jobs:
            report = self._reports.get(each.uid)
            if report is not None or each.key in ended:
                runs = report is not None and (report.progress.stage, report.progress.attempt) in running.get(
                    each.key, ()
                )
                found.append(_activity(each.key, report, runs=runs, gpu_pod_ended=ended.get(each.key)))
        return found


def _activity(key: Key, report: _Report | None, *, runs: bool, gpu_pod_ended: datetime | None) -> JobActivity:
    namespace, name = key
    progress = report.progress if report is not None and runs else None
    return JobActivity(
        namespace,
        name,
        training=None if report is None else report.training,
        heartbeat=None if progress is None else progress.heartbeat_time,
        estimated_completion=None if progress is None else progress.estimated_completion_time,
        trains=progress is not None and progress.activity == TRAINING,
        gpu_pod_ended=gpu_pod_ended,
    )


def _ended_pods(entries: Collection[Entry]) -> dict[Key, datetime]:
    """The end of the oldest trainer of TRAIN whose pod still exists, for each job that has one."""
    found: dict[Key, datetime] = {}
    for entry in entries:
        trains = {child.uid for child in entry.children.values() if child.stage is Stage.TRAIN}
        ends = [
            pod.end.finished
            for pod in entry.pods.values()
            if pod.owner_uid in trains and pod.end is not None and pod.end.finished is not None
        ]
        if ends and entry.job is not None:
            found[entry.job.key] = min(ends)
    return found
