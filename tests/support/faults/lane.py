"""A lane: one operator process that serves one namespace, its proxy, and jobs that live there one after the other."""

from __future__ import annotations

import asyncio
import ssl
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from devcluster.certificates import Authority
from devcluster.layout import OPERATOR_NAMESPACE
from devcluster.product import RELEASE

from tests.support.faults.admin import Admin, Body
from tests.support.faults.kubelet import STORAGE_CLASS, Kubelet
from tests.support.faults.process import OperatorProcess
from tests.support.faults.proxy import FaultProxy

ACCOUNT = f"{RELEASE}-finetune-operator"
START_SECONDS = 300.0
"""Time for the start of a process. A busy machine needs minutes for several at once."""
_LOOK_SECONDS = 0.1


@dataclass
class Lane:
    """Use it in an `async with` block."""

    name: str
    """Also the name of its namespace, of its Lease and of its replica."""
    admin: Admin
    kubelet: Kubelet
    folder: Path
    resync_seconds: int = 600
    number: int = 0
    process: OperatorProcess = field(init=False)
    proxy: FaultProxy = field(init=False)

    async def __aenter__(self) -> Self:
        await self.admin.request("POST", "/api/v1/namespaces", {"metadata": {"name": self.name}})
        for claim in ("models", "artifacts"):
            await self.admin.request(
                "POST", f"/api/v1/namespaces/{self.name}/persistentvolumeclaims", _claim(claim)
            )
        authority = Authority()
        credential = authority.server("proxy", ["localhost"], ["127.0.0.1"])
        certificate = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        with tempfile.NamedTemporaryFile() as chain:
            chain.write(credential.certificate + credential.key)
            chain.flush()
            certificate.load_cert_chain(chain.name)
        self.proxy = await FaultProxy(self.admin.server, self.admin.trust, certificate).__aenter__()
        self.process = OperatorProcess(
            self.folder / self.name, self.name, self.proxy.port, authority.ca.certificate
        )
        self.use(await self.new_token())
        self.process.configure(
            {
                "trainer": {"image": "registry.example/none:1"},
                "watchNamespaces": [self.name],
                "leaderElection": {"leaseName": self.name},
                "resyncSeconds": self.resync_seconds,
                "metricsPort": await _free_port(),
                "healthPort": await _free_port(),
            }
        )
        self.process.start()
        return self

    async def __aexit__(self, *_error: object) -> None:
        await self.process.stop()
        await self.proxy.__aexit__(None, None, None)
        await self.admin.unless_gone("DELETE", f"/api/v1/namespaces/{self.name}")

    async def new_token(self) -> str:
        """Another token for the process."""
        path = f"/api/v1/namespaces/{OPERATOR_NAMESPACE}/serviceaccounts/{ACCOUNT}/token"
        # Equal requests within a second would get equal tokens.
        self.number += 1
        body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest"}
        answer = await self.admin.request(
            "POST", path, {**body, "spec": {"expirationSeconds": 3600 + self.number}}
        )
        return str(answer["status"]["token"])

    def use(self, token: str) -> None:
        """Replace the token of the process, as a kubelet does."""
        self.process.set_token(token)

    async def ready(self) -> None:
        """Wait until the operator has opened its watches."""
        await self._until(
            lambda: len(self.proxy.watched) >= 5 or None, "the operator watches all kinds", START_SECONDS
        )

    def next_name(self) -> str:
        """A name for the next job."""
        self.number += 1
        return f"job{self.number}"

    async def _until(self, find: Callable[[], Any], what: str, seconds: float) -> Any:
        deadline = time.monotonic() + seconds
        while True:
            found = find()
            if found is not None:
                return found
            if time.monotonic() > deadline:
                raise TimeoutError(f"{what}: not within {seconds:.0f} s")
            await asyncio.sleep(_LOOK_SECONDS)


def _claim(name: str) -> Body:
    """A claim of the user, for the model or for what comes out."""
    spec = {"storageClassName": STORAGE_CLASS, "accessModes": ["ReadWriteMany"]}
    body = {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": name}}
    return {**body, "spec": {**spec, "resources": {"requests": {"storage": "1Gi"}}}}


async def _free_port() -> int:
    server = await asyncio.start_server(lambda _reader, _writer: None, "127.0.0.1", 0)
    port: int = server.sockets[0].getsockname()[1]
    server.close()
    await server.wait_closed()
    return port
