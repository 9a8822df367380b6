"""Starts the cluster's components inside the namespaces, in order, and watches them."""

from __future__ import annotations

import argparse
import http.client
import json
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from devcluster import bootstrap, components, gpus, images
from devcluster.api import ApiClient
from devcluster.certificates import ADMIN, PROVISIONER
from devcluster.components import CONTAINERD_SOCKET, PKI, Component
from devcluster.errors import ApiError, DevClusterError
from devcluster.layout import (
    BIN,
    INSIDE,
    NODE_NAME,
    Layout,
    has_containerd_2,
    python_command,
    python_environment,
    runs_built_images,
)

_PROGRAM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_START_SECONDS = 90.0
_POLL_SECONDS = 0.1
_LOG_LINES = 15


class Manager:
    """All components of one cluster; `start` starts them, `watch` blocks until one ends."""

    def __init__(self, layout: Layout, listener: int) -> None:
        self._layout = layout
        self._listener = listener
        self._began = time.monotonic()
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def start(self) -> None:
        """Start everything and write the ready file.

        Raises DevClusterError with the last log lines of a component that ends or is not ready in time.
        """
        (INSIDE / "log").mkdir(exist_ok=True)
        (INSIDE / "volumes").mkdir(exist_ok=True)
        self._write_configuration()
        self._launch(components.containerd())
        self._launch(components.etcd())
        self._launch(components.api_server())
        forwarder = Component("forwarder", tuple(python_command("forwarder", "--fd", str(self._listener))))
        self._launch(forwarder, inherit=self._listener)
        imports = _Background(self._import_images)
        client = ApiClient(PKI / f"{ADMIN.file}.kubeconfig")
        self._wait("kube-apiserver", lambda: client.request("GET", "/readyz")["text"] == "ok")
        bootstrap.apply_all(client)
        self._say("API server ready")
        imports.join()
        for component in (
            components.kubelet(),
            components.controller_manager(),
            components.scheduler(),
            components.proxy(),
        ):
            self._launch(component)
        config = str(PKI / f"{PROVISIONER.file}.kubeconfig")
        self._launch(Component("provisioner", tuple(python_command("provisioner", "--kubeconfig", config))))
        self._wait("kubelet", lambda: _node_ready(client))
        gpus.set_gpus(client, gpus.Gpus())
        account = "/api/v1/namespaces/default/serviceaccounts/default"
        self._wait("kube-controller-manager", lambda: bool(client.request("GET", account)))
        self._say("node ready")
        ready = INSIDE / self._layout.ready.name
        partial = ready.with_suffix(".new")
        partial.write_text(json.dumps({"seconds": round(self._seconds(), 2)}))
        partial.rename(ready)

    def watch(self) -> None:
        """Block while all components run; raise DevClusterError when one ends."""
        while True:
            self._check()
            time.sleep(0.5)

    def _seconds(self) -> float:
        return time.monotonic() - self._began

    def _say(self, text: str) -> None:
        print(f"{self._seconds():5.1f} s  {text}", flush=True)

    def _write_configuration(self) -> None:
        components.CNI_FOLDER.mkdir(exist_ok=True)
        (components.CNI_FOLDER / "10-devcluster.conflist").write_text(components.cni_config())
        components.CONTAINERD_CONFIG.write_text(components.containerd_config())
        components.AUDIT_POLICY.write_text(components.audit_policy())
        components.KUBELET_CONFIG.write_text(components.kubelet_config(self._layout.cgroup))
        components.PROXY_CONFIG.write_text(components.proxy_config())
        default = subprocess.run(["ctr", "oci", "spec"], capture_output=True, text=True, check=True).stdout
        components.RUNTIME_SPEC.write_text(images.runtime_spec(default))

    def _launch(self, component: Component, inherit: int | None = None) -> None:
        # containerd starts the shim that it finds first.
        path = (
            f"{BIN}:{_PROGRAM_PATH}"
            if component.name == "containerd" and has_containerd_2()
            else _PROGRAM_PATH
        )
        environment = python_environment() | {"PATH": path, "HOME": str(INSIDE)}
        with self._log(component.name).open("ab") as log:
            self._processes[component.name] = subprocess.Popen(
                component.argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd="/", env=environment,
                pass_fds=[] if inherit is None else [inherit],
            )  # fmt: skip

    def _log(self, name: str) -> Path:
        return INSIDE / "log" / f"{name}.log"

    def _check(self) -> None:
        for name, process in self._processes.items():
            if process.poll() is not None:
                raise DevClusterError(
                    f"{name} must keep running, it ended with {process.returncode}:\n{self._tail(name)}"
                )

    def _tail(self, name: str) -> str:
        return "\n".join(self._log(name).read_text(errors="replace").splitlines()[-_LOG_LINES:])

    def _wait(self, name: str, ready: Callable[[], bool]) -> None:
        """Wait until `ready` returns True; repeat the call if the server rejects it or does not respond yet."""
        reason: Exception | None = None
        deadline = time.monotonic() + _START_SECONDS
        while time.monotonic() < deadline:
            self._check()
            try:
                if ready():
                    return
            except (ApiError, OSError, http.client.HTTPException) as error:
                reason = error
            time.sleep(_POLL_SECONDS)
        raise DevClusterError(
            f"{name} must be ready within {_START_SECONDS:.0f} s; last answer: {reason}\n{self._tail(name)}"
        )

    def _import_images(self) -> None:
        self._wait("containerd", CONTAINERD_SOCKET.is_socket)
        thin = () if runs_built_images() else images.PRODUCT_IMAGES
        images.import_images(CONTAINERD_SOCKET, (images.PAUSE, *thin))


class _Background:
    """A call in a thread; `join` raises the call's exception."""

    def __init__(self, call: Callable[[], None]) -> None:
        self._call = call
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._call()
        except Exception as error:  # noqa: BLE001  passed to the thread that joins
            self._error = error

    def join(self) -> None:
        self._thread.join()
        if self._error is not None:
            raise self._error


def _node_ready(client: ApiClient) -> bool:
    conditions = client.request("GET", f"/api/v1/nodes/{NODE_NAME}").get("status", {}).get("conditions", [])
    return any(condition["type"] == "Ready" and condition["status"] == "True" for condition in conditions)


def main() -> int:
    """Run until a component ends; print the reason to stdout, the supervisor's log, and return 1."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--name", required=True, help="name of the cluster")
    parser.add_argument(
        "--listener", type=int, required=True, help="file descriptor of the host's listening socket"
    )
    arguments = parser.parse_args()
    # The kubelet and containerd need many open files; the hard limit is this machine's maximum.
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    manager = Manager(Layout(arguments.name), arguments.listener)
    try:
        manager.start()
        manager.watch()
    except DevClusterError as error:
        print(f"error: {error}", flush=True)
    return 1


if __name__ == "__main__":
    sys.exit(main())
