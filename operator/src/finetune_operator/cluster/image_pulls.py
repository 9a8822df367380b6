"""Reads from Events how long the kubelet pulled the trainer's image, once for each pod that took time to start.

The number of requests is bounded whatever happens. A pod without such an Event is asked about twice, and then no more.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from finetune_operator.cluster.resources import Cluster
from finetune_operator.cluster.rounds import repeat_rounds
from finetune_operator.cluster.store import Store
from finetune_operator.cluster.store_entry import Entry
from finetune_operator.errors import ApiError
from finetune_operator.observed.image_pull import pull_seconds, took_time
from finetune_operator.observed.observation import ChildJob, Pod
from finetune_operator.observed.packed import StoredJob, unpacked
from finetune_operator.observed.warnings import project_event

ROUND_SECONDS = 2.0
ROUND_REQUESTS = 5
TRIES = 2
"""The kubelet sends its Events a moment after the pod's state."""
RETRY_SECONDS = 10.0
DENIED_SECONDS = 600.0

_logger = logging.getLogger(__name__)


class ImagePullReader:
    """Keeps the times of pulls in the store. It wakes no job: a time is written with the next change of the status."""

    def __init__(self, store: Store, cluster: Cluster, clock: Callable[[], float]) -> None:
        """`clock` is monotonic, in seconds."""
        self._store = store
        self._cluster = cluster
        self._clock = clock
        self._tries: dict[str, tuple[int, float]] = {}
        """Tries and the time of the next one, by the uid of a pod that runs."""
        self._denied_until = 0.0

    async def run(self) -> None:
        """Read until canceled."""
        await repeat_rounds(self._cluster, self.read_round, ROUND_SECONDS, "reading the times of image pulls")

    async def read_round(self) -> None:
        """Read the Events of the pods that are due, within the allowed requests."""
        clock = self._clock()
        running = [(entry, *found) for entry in self._store.busy() for found in entry.running_pods()]
        self._tries = {pod.uid: self._tries.get(pod.uid, (0, clock)) for _, _, _, pod in running}
        if clock < self._denied_until:
            return
        due = [found for found in running if self._is_due(*found)]
        for entry, _, child, pod in sorted(due, key=lambda found: self._tries[found[3].uid][1])[
            :ROUND_REQUESTS
        ]:
            tries, _ = self._tries[pod.uid]
            self._tries[pod.uid] = (tries + 1, clock + RETRY_SECONDS)
            if not await self._read(entry, child, pod):
                return

    def _is_due(self, entry: Entry, job: StoredJob, child: ChildJob, pod: Pod) -> bool:
        tries, due = self._tries[pod.uid]
        if pod.uid in entry.image_pulls or tries >= TRIES or self._clock() < due or not took_time(pod):
            return False
        # Another replica may have read it before.
        shown = unpacked(job).status.get("stage") or {}
        return not ("imagePullSeconds" in shown and shown.get("jobName") == child.name)

    async def _read(self, entry: Entry, child: ChildJob, pod: Pod) -> bool:
        """Read the Events of one pod; returns False if the API server does not answer or forbids it."""
        fields = f"involvedObject.uid={pod.uid},reason=Pulled"
        namespace = "" if entry.job is None else entry.job.namespace
        try:
            listed = await self._cluster.list_events(namespace, fields, project_event)
        except ApiError as error:
            if error.status == 403:
                # The reader of warnings says so in the log.
                self._denied_until = self._clock() + DENIED_SECONDS
            _logger.debug("events of pod %s: %s", pod.name, error)
            return False
        seconds = pull_seconds(listed.items, child.image)
        if seconds is not None and pod.uid in entry.pods:
            known = {uid: each for uid, each in entry.image_pulls.items() if uid in entry.pods}
            entry.image_pulls = {**known, pod.uid: seconds}
        return True
