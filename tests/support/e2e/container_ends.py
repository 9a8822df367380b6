"""When containers ended by containerd, to the microsecond. The kubelet tells it in whole seconds."""

from __future__ import annotations

import json
import subprocess
import threading
from datetime import datetime
from pathlib import Path
from typing import Self

_EXIT = "k8s.io /tasks/exit "


class ContainerEnds:
    """Records the ends of containers during a `with` block, from the events of containerd's own client."""

    def __init__(self, socket: Path) -> None:
        """`socket` is that of a cluster's containerd."""
        self._command = ["ctr", "--address", str(socket), "--namespace", "k8s.io", "events"]
        self._ends: dict[str, float] = {}

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(self._command, stdout=subprocess.PIPE, text=True)
        self._reader = threading.Thread(target=self._follow, daemon=True)
        self._reader.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._process.terminate()
        self._reader.join()
        # It closes the pipe, too.
        self._process.communicate()

    def by_name(self) -> dict[str, float]:
        """Return the end of each container by its name so far, in seconds of `time.time`."""
        return dict(self._ends)

    def _follow(self) -> None:
        for line in self._process.stdout or ():
            _, found, event = line.partition(_EXIT)
            if not found:
                continue
            ended = json.loads(event)
            # Other processes of a container are those of `exec`.
            if ended["id"] == ended["container_id"]:
                self._ends[ended["container_id"]] = datetime.fromisoformat(ended["exited_at"]).timestamp()
