"""Host process that owns a cluster: the cluster runs exactly as long as its owner.

    owner (host namespaces) -> first process (PID 1 of a new PID namespace, own mounts and network) -> manager -> components

When PID 1 of a PID namespace ends, the kernel kills every other process in it. When the owner ends, for any reason,
the kernel kills PID 1.
"""

from __future__ import annotations

import argparse
import os
import select
import signal
import socket
import subprocess
import sys
import traceback
from types import FrameType

from devcluster import certificates, cgroups, cleanup, linux, namespaces
from devcluster.certificates import ADMIN
from devcluster.layout import API_PORT, Layout, python_command, python_environment

_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def _first_process(layout: Layout, lifeline: int, listener: socket.socket, lock: int) -> int:
    """PID 1 of the cluster: set up the namespaces, start the manager, reap orphans until the manager ends.

    Its return (or a stop signal) kills every process of the cluster. There is no state to save, so none stops gracefully.
    """
    linux.die_with_parent(signal.SIGKILL)
    # The owner is outside this PID namespace, so getppid() is always 0; only the pipe shows whether the owner runs.
    if select.select([lifeline], [], [], 0)[0]:
        return 1
    for number in _STOP_SIGNALS:
        signal.signal(number, _exit_on_signal)
    namespaces.enter(layout)
    command = python_command("manager", "--name", layout.name, "--listener", str(listener.fileno()))
    keep = [listener.fileno(), lock]
    manager = subprocess.Popen(command, env=python_environment(), pass_fds=keep, stdin=subprocess.DEVNULL)
    while True:
        pid, status = os.wait()
        if pid == manager.pid:
            return os.waitstatus_to_exitcode(status)


def _exit_on_signal(_number: int, _frame: FrameType | None) -> None:
    os._exit(0)


class Owner:
    """Owns the cluster of `layout`; `lock` is the file descriptor of its lock."""

    def __init__(self, layout: Layout, lock: int) -> None:
        self._layout = layout
        self._lock = lock
        self._child = 0
        self._stopping = False

    def run(self) -> int:
        """Run the cluster until its end and clean up; return 0 after a stop signal, else the first process's status."""
        layout = self._layout
        layout.owner.write_text(f"{os.getpid()}\n")
        for number in _STOP_SIGNALS:
            signal.signal(number, self._stop)
        listener = socket.create_server(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        pki = layout.state / "pki"
        certificates.write_all(pki, f"https://127.0.0.1:{API_PORT}")
        text = (pki / f"{ADMIN.file}.kubeconfig").read_text()
        outside = text.replace(f"https://127.0.0.1:{API_PORT}", f"https://127.0.0.1:{port}")
        certificates.write_private(layout.kubeconfig, outside.encode())
        cgroups.create(layout.cgroup)
        status = self._supervise(listener)
        cleanup.remove(layout, keep_logs=not self._stopping)
        if self._stopping:
            # The stop signal can come from the parent's death, and then no process is left to call `stop`.
            cleanup.remove_lock(layout)
        return 0 if self._stopping else status

    def _supervise(self, listener: socket.socket) -> int:
        read_end, write_end = os.pipe()
        linux.unshare(linux.CLONE_NEWPID)
        child = os.fork()
        if child == 0:
            status = 1
            try:
                os.close(write_end)
                status = _first_process(self._layout, read_end, listener, self._lock)
            except BaseException:  # noqa: BLE001  a forked process must never return into its parent's code
                traceback.print_exc()
            os._exit(status)
        self._child = child
        os.close(read_end)
        listener.close()
        if self._stopping:  # the signal came before there was a child to stop
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        os.close(write_end)
        return os.waitstatus_to_exitcode(status)

    def _stop(self, _number: int, _frame: FrameType | None) -> None:
        self._stopping = True
        if self._child:
            os.kill(self._child, signal.SIGKILL)


def main() -> int:
    """Own the cluster until a stop signal, the given parent's death or the end of a component."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--name", required=True, help="name of the cluster")
    parser.add_argument("--lock", type=int, required=True, help="file descriptor of the locked lock file")
    parser.add_argument("--parent", type=int, help="process id of the parent; this process ends with it")
    arguments = parser.parse_args()
    owner = Owner(Layout(arguments.name), arguments.lock)
    if arguments.parent is not None:
        linux.die_with_parent(signal.SIGTERM, arguments.parent)
    return owner.run()


if __name__ == "__main__":
    sys.exit(main())
