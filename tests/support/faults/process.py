"""The operator's own process, started as its container would be: with a ServiceAccount's token and the chart's settings."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from devcluster.layout import OPERATOR_NAMESPACE
from finetune_operator.settings import PATH_VARIABLE

RESTART_SECONDS = 0.5
"""Time until an ended process starts again. A kubelet takes about as long for the first restart."""
_MOUNT = (
    "mount -t tmpfs none /run && mkdir -p /run/secrets/kubernetes.io"
    ' && ln -s "$1" /run/secrets/kubernetes.io/serviceaccount && shift && exec setpriv --pdeathsig KILL "$@"'
)


class OperatorProcess:
    """Keeps one process of the operator running between `start` and `stop`, like a kubelet."""

    def __init__(self, folder: Path, name: str, port: int, authority: bytes) -> None:
        """`port` is that of the API server on this machine, `authority` its CA. `folder` is the process's own."""
        self._folder = folder
        self._name = name
        self._port = port
        account = folder / "serviceaccount"
        account.mkdir(parents=True)
        (account / "ca.crt").write_bytes(authority)
        (account / "namespace").write_text(OPERATOR_NAMESPACE, "utf-8")
        self._process: asyncio.subprocess.Process | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._resume = asyncio.Event()
        self._expected = False
        self.ends: list[int] = []
        """Exit codes of the ends that nobody asked for."""
        self.log = folder / "operator.log"

    def set_token(self, token: str) -> None:
        """Replace the token at once, as a kubelet does."""
        account = self._folder / "serviceaccount"
        (account / "token.new").write_text(token, "utf-8")
        (account / "token.new").replace(account / "token")

    def configure(self, settings: dict[str, Any]) -> None:
        """Write the settings for the next start."""
        (self._folder / "settings.json").write_text(json.dumps(settings), "utf-8")

    def start(self) -> None:
        """Start the process, and start it again whenever it ends."""
        self._resume.set()
        if self._keeper is None:
            self._keeper = asyncio.create_task(self._keep())

    async def kill(self, *, resume: bool = True) -> None:
        """End the process at once (SIGKILL). With `resume=False`, it starts again only with `start`."""
        self._expected = True
        if not resume:
            self._resume.clear()
        process = self._process
        if process is not None:
            with suppress(ProcessLookupError):
                process.send_signal(signal.SIGKILL)
            await process.wait()

    async def stop(self) -> None:
        """End the process for good."""
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.wait({self._keeper})
        await self.kill()

    def tracebacks(self, since: int = 0) -> str:
        """What the log says from its first traceback on, after its first `since` bytes; empty if there is none."""
        text = self.log.read_bytes()[since:].decode("utf-8", "replace")
        start = text.find("Traceback (most recent call last)")
        return "" if start < 0 else text[max(start - 500, 0) : start + 3000]

    async def _keep(self) -> None:
        while True:
            await self._resume.wait()
            with self.log.open("ab") as log:
                self._process = await asyncio.create_subprocess_exec(
                    "unshare", "--mount", "--propagation", "private", "sh", "-c", _MOUNT, "sh",
                    str(self._folder / "serviceaccount"), sys.executable, "-m", "finetune_operator",
                    stdin=asyncio.subprocess.DEVNULL, stdout=log, stderr=log, env=self._environment(),
                )  # fmt: skip
            self._expected = False
            code = await self._process.wait()
            if not self._expected:
                self.ends.append(code)
            await asyncio.sleep(RESTART_SECONDS)

    def _environment(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if name in {"PATH", "PYTHONPATH", "HOME"}}
        return {
            **kept,
            PATH_VARIABLE: str(self._folder / "settings.json"),
            "KUBERNETES_SERVICE_HOST": "127.0.0.1",
            "KUBERNETES_SERVICE_PORT": str(self._port),
            "POD_NAME": self._name,
            "POD_NAMESPACE": OPERATOR_NAMESPACE,
        }
