"""A control plane without any node: etcd, the API server and its controllers, as processes of this machine.

Nothing runs in it, so thousands of objects cost little. It needs the binaries of the dev cluster, but not root.
"""

from __future__ import annotations

import http.client
import json
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from devcluster.api import ApiClient
from devcluster.certificates import ADMIN, Authority, Identity, kubeconfig, write_all, write_private
from devcluster.errors import ApiError
from devcluster.layout import tool

OPERATOR = Identity("operator", "fuzz:operator", ("system:masters",))
# Without the scheduler, every pod stays Pending.
_CONTROLLERS = (
    "job-controller",
    "garbage-collector-controller",
    "namespace-controller",
    "serviceaccount-controller",
    "persistentvolumeclaim-protection-controller",
)
_START_SECONDS = 90.0
_POLL_SECONDS = 0.1
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class ControlPlane:
    """The files and processes of a running control plane. `operator` is the operator's own identity."""

    admin: Path
    operator: Path
    audit_log: Path
    api_server: subprocess.Popen[bytes]


def free_port() -> int:
    """Return a port of the loopback on which nothing listens now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def cpu_seconds(pid: int) -> float:
    """Return the CPU time that a process has used."""
    # The second field, the name, can contain blanks and brackets.
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def resident_bytes(pid: int) -> int:
    """Return the resident memory of a process."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@contextmanager
def control_plane(folder: Path) -> Iterator[ControlPlane]:
    """Run a control plane whose files are in `folder` for the duration of a `with` block."""
    server = f"https://127.0.0.1:{free_port()}"
    write_all(folder, server)
    operator = _add_identity(folder, server, OPERATOR)
    policy = folder / "audit-policy.json"
    policy.write_text(_audit_policy())
    with ExitStack() as stack:
        etcd = f"http://127.0.0.1:{free_port()}"
        _start(stack, folder, "etcd", _etcd(folder, etcd))
        api_server = _start(stack, folder, "kube-apiserver", _api_server(folder, server, etcd, policy))
        client = ApiClient(folder / f"{ADMIN.file}.kubeconfig")
        _wait(folder, "/readyz", client, api_server)
        _start(stack, folder, "kube-controller-manager", _controllers(folder))
        _wait(folder, "/api/v1/namespaces/default/serviceaccounts/default", client, api_server)
        admin = folder / f"{ADMIN.file}.kubeconfig"
        yield ControlPlane(admin, operator, folder / "audit.log", api_server)


def _add_identity(folder: Path, server: str, identity: Identity) -> Path:
    """Write a kubeconfig for `identity`, signed by an authority that the API server trusts, too."""
    authority = Authority()
    known = (folder / "ca.crt").read_bytes()
    (folder / "clients.crt").write_bytes(known + authority.ca.certificate)
    path = folder / f"{identity.file}.kubeconfig"
    text = kubeconfig(server, known, identity.user, authority.client(identity))
    write_private(path, text.encode())
    return path


def _audit_policy() -> str:
    """Log the operator's requests without their bodies."""
    rules = [{"level": "Metadata", "users": [OPERATOR.user]}, {"level": "None"}]
    return json.dumps(
        {
            "apiVersion": "audit.k8s.io/v1",
            "kind": "Policy",
            "omitStages": ["RequestReceived", "ResponseStarted"],
            "rules": rules,
        }
    )


def _etcd(folder: Path, url: str) -> dict[str, object]:
    peers = f"http://127.0.0.1:{free_port()}"
    return {
        "data-dir": folder / "etcd",
        "unsafe-no-fsync": "true",
        "log-level": "warn",
        "listen-client-urls": url,
        "advertise-client-urls": url,
        "listen-peer-urls": peers,
        "initial-advertise-peer-urls": peers,
        "initial-cluster": f"default={peers}",
        # Deleted objects would fill the store otherwise.
        "auto-compaction-mode": "revision",
        "auto-compaction-retention": "20000",
    }


def _api_server(folder: Path, server: str, etcd: str, policy: Path) -> dict[str, object]:
    return {
        "etcd-servers": etcd,
        "bind-address": "127.0.0.1",
        "secure-port": server.rpartition(":")[2],
        "endpoint-reconciler-type": "none",
        "service-cluster-ip-range": "10.96.0.0/16",
        "anonymous-auth": "false",
        "authorization-mode": "RBAC",
        "client-ca-file": folder / "clients.crt",
        "tls-cert-file": folder / "apiserver.crt",
        "tls-private-key-file": folder / "apiserver.key",
        "service-account-issuer": "https://kubernetes.default.svc",
        "service-account-key-file": folder / "service-accounts.key",
        "service-account-signing-key-file": folder / "service-accounts.key",
        "audit-policy-file": policy,
        "audit-log-path": folder / "audit.log",
        "profiling": "false",
    }


def _controllers(folder: Path) -> dict[str, object]:
    config = folder / f"{ADMIN.file}.kubeconfig"
    return {
        "kubeconfig": config,
        "authentication-kubeconfig": config,
        "authorization-kubeconfig": config,
        "controllers": ",".join(_CONTROLLERS),
        "secure-port": free_port(),
        "bind-address": "127.0.0.1",
        "leader-elect": "false",
        "service-account-private-key-file": folder / "service-accounts.key",
        "root-ca-file": folder / "ca.crt",
        # The fuzz is to be bound by the operator.
        "kube-api-qps": "1000",
        "kube-api-burst": "2000",
        "concurrent-job-syncs": "10",
        "profiling": "false",
    }


def _start(stack: ExitStack, folder: Path, name: str, flags: dict[str, object]) -> subprocess.Popen[bytes]:
    log = stack.enter_context((folder / f"{name}.log").open("wb"))
    command = [str(tool(name)), *(f"--{key}={value}" for key, value in flags.items())]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=folder)
    stack.callback(stop, process)
    return process


def stop(process: subprocess.Popen[bytes]) -> None:
    """End a process, by force if it takes long."""
    process.terminate()
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _wait(folder: Path, path: str, client: ApiClient, api_server: subprocess.Popen[bytes]) -> None:
    """Wait until a GET of `path` succeeds."""
    deadline = time.monotonic() + _START_SECONDS
    while api_server.poll() is None and time.monotonic() < deadline:
        try:
            client.request("GET", path)
        except (ApiError, OSError, http.client.HTTPException):
            time.sleep(_POLL_SECONDS)
        else:
            return
    log = (folder / "kube-apiserver.log").read_text(errors="replace")[-2000:]
    raise AssertionError(f"the API server must answer {path} within {_START_SECONDS:.0f} s, its log is {log}")
