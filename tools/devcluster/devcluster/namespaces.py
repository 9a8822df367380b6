"""Sets up a cluster's private mount and network namespaces, so that nothing remains on the machine.

Called by the cluster's first process, in a new PID namespace. Every mount, address and rule below disappears with the
namespaces when their last process ends.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

from devcluster import linux
from devcluster.errors import DevClusterError
from devcluster.layout import (
    INSIDE,
    NODE_ADDRESS,
    NODE_GATEWAY,
    NODE_NETWORK_PREFIX,
    REPOSITORY,
    Layout,
)

# State folders that must also appear at paths that are built into the components.
_FIXED_PATHS = {"kubelet": "/var/lib/kubelet", "pod-logs": "/var/log/pods"}
# The kubelet sets these kernel settings, which belong to the whole machine and to no namespace. It finds plain files
# # instead, with the right values; if it needs other values, it writes to those files.
_KUBELET_SETTINGS = {
    "vm/overcommit_memory": 1,
    "vm/panic_on_oom": 0,
    "kernel/panic": 10,
    "kernel/panic_on_oops": 1,
    "kernel/keys/root_maxkeys": 1_000_000,
    "kernel/keys/root_maxbytes": 25_000_000,
}


def enter(layout: Layout) -> None:
    """Move this process into new mount and network namespaces and set them up.

    Raises OSError if the kernel fails, DevClusterError if the checkout is not visible afterwards.
    """
    linux.unshare(linux.CLONE_NEWNS | linux.CLONE_NEWNET)
    _mounts(layout)
    _network()


def _mounts(layout: Layout) -> None:
    # First isolate the machine's mounts, then share the tree again within the new namespace: the kubelet needs
    # # mounts to propagate into containers.
    linux.mount("none", "/", flags=linux.MS_REC | linux.MS_PRIVATE)
    linux.mount("none", "/", flags=linux.MS_REC | linux.MS_SHARED)
    linux.mount("proc", "/proc", "proc")
    state = layout.state
    for name in _FIXED_PATHS:
        (state / name).mkdir(exist_ok=True)
    # Sockets, locks and the network namespaces' handles go to a private /run; the state gets a short path there.
    linux.mount("tmpfs", "/run", "tmpfs", options="mode=755")
    INSIDE.mkdir()
    linux.bind(state, INSIDE)
    Path("/run/netns").mkdir()
    for setting, value in _KUBELET_SETTINGS.items():
        stand_in = Path("/run/sysctl") / setting
        stand_in.parent.mkdir(parents=True, exist_ok=True)
        stand_in.write_text(f"{value}\n")
        linux.bind(stand_in, Path("/proc/sys") / setting)
    # /var is visible as it is, but files that the components create in it (CNI's cache, log folders) stay in memory.
    upper, work = Path("/run/var/upper"), Path("/run/var/work")
    for folder in (upper, work):
        folder.mkdir(parents=True)
    linux.mount("overlay", "/var", "overlay", options=f"lowerdir=/var,upperdir={upper},workdir={work}")
    for name, path in _FIXED_PATHS.items():
        Path(path).mkdir(parents=True, exist_ok=True)
        linux.bind(INSIDE / name, path)
    if not (REPOSITORY / "tests").is_dir():
        raise DevClusterError(
            f"the checkout must not be under /run or under a mount below /var, found {REPOSITORY}; "
            "clone it somewhere else"
        )


def _network() -> None:
    commands = f"""\
link set lo up
link add node0 type bridge
addr add {NODE_ADDRESS}/{NODE_NETWORK_PREFIX} dev node0
link set node0 up
route add default via {NODE_GATEWAY} dev node0
"""
    # The default route has no destination: the kubelet only needs it to find the node's address.
    answer = subprocess.run(
        ["ip", "-batch", "-"], input=commands, capture_output=True, text=True, check=False
    )
    if answer.returncode != 0:
        raise DevClusterError(f"ip must set up the cluster's network, it ended with: {answer.stderr.strip()}")
