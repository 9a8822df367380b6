"""Programs that a measurement starts, with their logs, their memory and their CPU time."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from devcluster.linux import die_with_parent

STOP_SECONDS = 20
_TICKS = os.sysconf("SC_CLK_TCK")


class Program:
    """A running program. Linux ends it if this process dies."""

    def __init__(
        self,
        name: str,
        command: Sequence[str | Path],
        folder: Path,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """Start `command` in `folder`, with its output in `NAME.log` there and `environment` in addition to the present one."""
        self.name = name
        self.log = folder / f"{name}.log"
        parent = os.getpid()
        with self.log.open("ab") as output:
            self._process = subprocess.Popen(
                [str(part) for part in command],
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **(environment or {})},
                preexec_fn=lambda: die_with_parent(signal.SIGKILL, parent),  # noqa: PLW1509 -- no threads yet
            )

    @property
    def cpu_seconds(self) -> float:
        """CPU time of all its threads until now."""
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS

    @property
    def resident_bytes(self) -> int:
        """Its memory now."""
        return self._memory("VmRSS")

    @property
    def anonymous_bytes(self) -> int:
        """Its memory now without the pages of files, which the kernel drops and reads again."""
        return self._memory("RssAnon")

    @property
    def peak_bytes(self) -> int:
        """The most memory that it has had."""
        return self._memory("VmHWM")

    def _memory(self, field: str) -> int:
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        found = re.search(rf"{field}:\s+(\d+) kB", status)
        assert found is not None, status
        return int(found[1]) * 1024

    def check(self) -> None:
        """Raise RuntimeError with the end of the log if the program has ended."""
        if self._process.poll() is not None:
            tail = self.log.read_text(errors="replace")[-2000:]
            raise RuntimeError(f"{self.name} must run, but it ended with {self._process.returncode}: {tail}")

    def stop(self) -> None:
        """End it, by force if it does not end in time."""
        self._process.terminate()
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def free_ports(count: int) -> list[int]:
    """Different ports of this machine that nobody listens on."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports
