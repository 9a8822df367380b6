"""Starts, stops and inspects dev clusters from the host."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from devcluster import cleanup
from devcluster.api import ApiClient
from devcluster.errors import DevClusterError
from devcluster.layout import STATE_ROOT, Layout, python_command, python_environment, tool

_PROGRAMS = ("containerd", "containerd-shim-runc-v2", "ctr", "runc", "iptables", "nft", "ip")
_BINARIES = (
    "etcd",
    "kube-apiserver",
    "kube-controller-manager",
    "kube-scheduler",
    "kubelet",
    "kube-proxy",
    "kubectl",
)
_UP_SECONDS = 120.0
_DOWN_SECONDS = 20.0
_POLL_SECONDS = 0.05


@dataclass(frozen=True)
class Status:
    """State of a cluster: whether its owner runs, whether it is ready, and its origin."""

    running: bool
    ready: bool
    owner: int | None


def _check_machine() -> None:
    """Raise DevClusterError, with the remedy, if this machine cannot run a dev cluster."""
    if sys.platform != "linux" or os.geteuid() != 0:
        raise DevClusterError(
            f"the dev cluster must be started on Linux as root, found {sys.platform} and uid {os.geteuid()}; "
            "set KUBECONFIG to an existing cluster, or use Docker: `make demo CLUSTER=kind`"
        )
    path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    absent = [program for program in _PROGRAMS if shutil.which(program, path=path) is None]
    if absent:
        raise DevClusterError(
            f"these programs must be installed: {', '.join(absent)}; run scripts/tools/apt_packages.sh"
        )
    for name in _BINARIES:
        tool(name)


def _lock(layout: Layout) -> int | None:
    """Take the cluster's lock and return its file descriptor, or None if a running cluster holds it."""
    while True:
        STATE_ROOT.mkdir(parents=True, exist_ok=True)
        lock = os.open(layout.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            return None
        # The former holder may have removed the file between our open and our lock; then the lock has no effect.
        if layout.lock.exists() and os.fstat(lock).st_ino == layout.lock.stat().st_ino:
            return lock
        os.close(lock)


def _owner(layout: Layout) -> int | None:
    """Return the process id of the cluster's running owner, or None."""
    try:
        pid = int(layout.owner.read_text())
        command = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
    except (FileNotFoundError, ProcessLookupError, ValueError):
        return None
    # The process id may belong to another process by now.
    return pid if "devcluster.owner" in command and layout.name in command else None


def start(layout: Layout, *, die_with_caller: bool) -> subprocess.Popen[bytes]:
    """Start the cluster, wait until its node is ready and return the owner process; prints the supervisor's progress.

    First removes the traces of a crashed cluster of that name. With `die_with_caller` the cluster ends with this process,
    even after SIGKILL (call from the main thread); otherwise it runs until `stop`. Raises DevClusterError if the machine
    does not meet a requirement, if the cluster already runs, or if a component fails.
    """
    _check_machine()
    lock = _lock(layout)
    if lock is None:
        raise DevClusterError(
            f"no cluster {layout.name!r} must be running, found one; use it, choose another --name, or take it down first"
        )
    try:
        cleanup.remove(layout)
        layout.log.parent.mkdir(parents=True)
        arguments = ["--name", layout.name, "--lock", str(lock)]
        if die_with_caller:
            arguments += ["--parent", str(os.getpid())]
        with layout.log.open("wb") as log:
            owner = subprocess.Popen(
                python_command("owner", *arguments), env=python_environment(), cwd="/", stdin=subprocess.DEVNULL,
                stdout=log, stderr=log, pass_fds=[lock], start_new_session=True,
            )  # fmt: skip
    finally:
        os.close(lock)
    try:
        _wait_ready(layout, owner)
    except BaseException:
        # A keyboard interrupt must not leave a partial cluster either.
        owner.send_signal(signal.SIGTERM)
        owner.wait()
        raise
    return owner


def _wait_ready(layout: Layout, owner: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + _UP_SECONDS
    with layout.log.open() as log:
        while True:
            ended, ready = owner.poll(), layout.ready.exists()
            text = log.read()
            print(text, end="", file=sys.stderr, flush=True)
            if ready:
                return
            if ended is not None:
                raise DevClusterError(
                    f"the cluster {layout.name!r} must come up, its owner ended with {ended}; see the lines above and the "
                    f"logs in {layout.log.parent}"
                )
            if time.monotonic() > deadline:
                raise DevClusterError(
                    f"the cluster {layout.name!r} must be ready within {_UP_SECONDS:.0f} s, it is not; "
                    f"see the logs in {layout.log.parent}"
                )
            time.sleep(_POLL_SECONDS)


def stop(layout: Layout) -> bool:
    """Stop the cluster, if it runs, and remove all its traces; return True if it was running.

    Raises DevClusterError if it does not end.
    """
    owner = _owner(layout)
    lock = _lock(layout)
    ran = lock is None
    stop_signal = signal.SIGTERM
    deadline = time.monotonic() + _DOWN_SECONDS
    while lock is None:
        if owner is not None:
            try:
                os.kill(owner, stop_signal)
            except ProcessLookupError:
                owner = None
        time.sleep(_POLL_SECONDS)
        lock = _lock(layout)
        if lock is None and time.monotonic() > deadline:
            if stop_signal == signal.SIGKILL:
                raise DevClusterError(
                    f"the cluster {layout.name!r} must end, but a process still holds {layout.lock}; find it with lslocks"
                )
            stop_signal, deadline = signal.SIGKILL, time.monotonic() + _DOWN_SECONDS
    try:
        cleanup.remove(layout)
        cleanup.remove_lock(layout)
    finally:
        os.close(lock)
    return ran


def status(layout: Layout) -> Status:
    """Inspect the cluster without changing anything."""
    owner = _owner(layout)
    return Status(running=owner is not None, ready=owner is not None and layout.ready.exists(), owner=owner)


def bring_up_seconds(layout: Layout) -> float:
    """Return the seconds from the manager's start until the node was ready."""
    return float(json.loads(layout.ready.read_text())["seconds"])


def client(layout: Layout) -> ApiClient:
    """Return an administrator's client of the running cluster; raises DevClusterError if it does not run."""
    if not status(layout).ready:
        raise DevClusterError(
            f"the cluster {layout.name!r} must be running, but it is not; start it with `up`"
        )
    return ApiClient(layout.kubeconfig)


@contextmanager
def running(layout: Layout) -> Iterator[Layout]:
    """Run a cluster for the duration of a `with` block; it also ends if this process is killed."""
    owner = start(layout, die_with_caller=True)
    try:
        yield layout
    finally:
        stop(layout)
        owner.wait()
