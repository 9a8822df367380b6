"""Private mount and network namespaces of a cluster: what is set up in them, so that nothing is left on the machine.

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

# Folders of the state that must appear at paths which the components have built in.
_FIXED_PATHS = {"kubelet": "/var/lib/kubelet", "pod-logs": "/var/log/pods"}
# The kubelet sets these kernel settings, which belong to the whole machine and to no namespace. It finds plain files
# in their place, with the values it wants; should it ever want others, it writes to those files.
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

    Raises OSError when the kernel refuses, DevClusterError when the checkout cannot be seen any more afterwards.
    """
    linux.unshare(linux.CLONE_NEWNS | linux.CLONE_NEWNET)
    _mounts(layout)
    _network()


def _mounts(layout: Layout) -> None:
    # First cut the tie to the machine's mounts, then make the tree shared again within the new namespace: the kubelet needs
    # mounts to propagate into containers.
    linux.mount("none", "/", flags=linux.MS_REC | linux.MS_PRIVATE)
    linux.mount("none", "/", flags=linux.MS_REC | linux.MS_SHARED)
    linux.mount("proc", "/proc", "proc")
    state = layout.state
    for name in _FIXED_PATHS:
        (state / name).mkdir(exist_ok=True)
    # Sockets, locks and the network namespaces' handles go to a /run of our own; the state moves into it under a short path.
    linux.mount("tmpfs", "/run", "tmpfs", options="mode=755")
    INSIDE.mkdir()
    linux.bind(state, INSIDE)
    Path("/run/netns").mkdir()
    for setting, value in _KUBELET_SETTINGS.items():
        stand_in = Path("/run/sysctl") / setting
        stand_in.parent.mkdir(parents=True, exist_ok=True)
        stand_in.write_text(f"{value}\n")
        linux.bind(stand_in, Path("/proc/sys") / setting)
    # /var is seen as it is, but what the components create in it (CNI's cache, log folders) stays in memory.
    upper, work = Path("/run/var/upper"), Path("/run/var/work")
    for folder in (upper, work):
        folder.mkdir(parents=True)
    linux.mount("overlay", "/var", "overlay", options=f"lowerdir=/var,upperdir={upper},workdir={work}")
    for name, path in _FIXED_PATHS.items():
        Path(path).mkdir(parents=True, exist_ok=True)
        linux.bind(INSIDE / name, path)
    if not (REPOSITORY / "tests").is_dir():
        raise DevClusterError(
            f"the checkout must not lie under /run or under a mount below /var, found {REPOSITORY}; "
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
    # The default route leads nowhere: the kubelet needs one to find the node's address.
    answer = subprocess.run(
        ["ip", "-batch", "-"], input=commands, capture_output=True, text=True, check=False
    )
    if answer.returncode != 0:
        raise DevClusterError(f"ip must set up the cluster's network, it ended with: {answer.stderr.strip()}")
