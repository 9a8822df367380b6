"""For how long nothing has changed about each job: what is slow goes on, and what hangs does not."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from tests.support.e2e.scene import Scene

Object = dict[str, Any]


@dataclass
class Stillness:
    """Compares the versions of all objects of each job, look by look."""

    limit: float
    """Seconds without any change after which a job hangs."""
    clock: Callable[[], float] = time.monotonic
    _changed: dict[str, float] = field(default_factory=dict)
    _versions: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def hanging(self, scene: Scene, names: Iterable[str]) -> list[str]:
        """Return those of the jobs without a change for too long, and what is known about each.

        A job whose pod finds no room waits for the others, as long as one of them changes.
        """
        names = list(names)
        now = self.clock()
        for name in names:
            versions = tuple(sorted(item["metadata"]["resourceVersion"] for item in scene.objects_of(name)))
            if self._versions.get(name) != versions:
                self._versions[name] = versions
                self._changed[name] = now
        still = [name for name in names if now - self._changed[name] > self.limit]
        full = len(still) < len(names)
        return [
            f"{name} has not changed for {now - self._changed[name]:.0f} s: {_state(scene, name)}"
            for name in still
            if not (full and scene.has_no_room(name))
        ]


def _state(scene: Scene, name: str) -> str:
    status = scene.jobs.get(name, {}).get("status", {})
    messages = {each["type"]: f"{each['status']} {each['reason']}" for each in status.get("conditions", [])}
    return f"{status.get('phase')}, {messages}, {scene.left_of(name)}"
