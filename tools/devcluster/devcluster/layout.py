"""Names, addresses and paths of one dev cluster.

Every path exists twice: on the host under `/var/lib/finetune-devcluster/NAME`, and inside the cluster's mount
namespace, which binds that folder to `/run/devcluster`. The second form is short for every name, because the path of
a unix socket must stay under 108 bytes.
"""

from __future__ import annotations

import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path

from devcluster.errors import DevClusterError

STATE_ROOT = Path("/var/lib/finetune-devcluster")
INSIDE = Path("/run/devcluster")
CGROUP_PREFIX = "finetune-devcluster-"

NODE_NAME = "node1"
# The addresses are in a private network namespace, so that all clusters of a machine can use the same ones.
NODE_ADDRESS = "10.245.0.1"
NODE_NETWORK_PREFIX = 24
NODE_GATEWAY = "10.245.0.254"
POD_NETWORK = "10.244.0.0/24"
SERVICE_NETWORK = "10.96.0.0/16"
API_SERVICE_ADDRESS = "10.96.0.1"
API_PORT = 6443

OPERATOR_NAMESPACE = "finetune-system"

PAUSE_IMAGE = "docker.io/local/pause:1"

REPOSITORY = Path(__file__).resolve().parents[3]
BIN = REPOSITORY / ".cache" / "bin"

CONTAINERD_VARIABLE = "DEVCLUSTER_CONTAINERD"
"""Environment variable that chooses the container runtime: `2` is containerd 2 of `.cache/bin`, else it is Debian's."""

IMAGES_VARIABLE = "DEVCLUSTER_IMAGES"
"""Environment variable that chooses the content of containers: `built` leaves images as they are, else the runtime adds this
machine's libraries and this checkout."""

_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?")


@dataclass(frozen=True)
class Layout:
    """Locations of the files of the cluster `name`.

    Raises DevClusterError unless the name has 1 to 40 lower-case letters, digits and inner dashes.
    """

    name: str

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise DevClusterError(
                "a cluster's name must be 1 to 40 lower-case letters, digits and inner dashes, "
                f"found {self.name!r}; give another one with --name"
            )

    @property
    def state(self) -> Path:
        """Folder of all the cluster's files, as the host sees it."""
        return STATE_ROOT / self.name

    @property
    def lock(self) -> Path:
        """Lock file (flock), locked as long as a process of the cluster runs."""
        return STATE_ROOT / f"{self.name}.lock"

    @property
    def kubeconfig(self) -> Path:
        """The administrator's kubeconfig for programs on the host."""
        return self.state / "kubeconfig"

    @property
    def ready(self) -> Path:
        """JSON file, written as soon as the cluster is ready: `seconds` until then."""
        return self.state / "ready.json"

    @property
    def owner(self) -> Path:
        """Process id of the cluster's owner on the host."""
        return self.state / "owner.pid"

    @property
    def log(self) -> Path:
        """Log of the supervisor."""
        return self.state / "log" / "supervisor.log"

    @property
    def audit_log(self) -> Path:
        """The API server's log of the operator's requests, one JSON document a line."""
        return self.state / "log" / "audit.log"

    @property
    def containerd_socket(self) -> Path:
        """containerd's socket as the host sees it; unix sockets with a path do not belong to a network namespace."""
        return self.state / "containerd.sock"

    @property
    def registries(self) -> Path:
        """Folder with a subfolder HOST:PORT and its `hosts.toml` for each registry that needs settings."""
        return self.state / "registries"

    @property
    def cgroup(self) -> str:
        """Name of the cgroup that contains all pods of this cluster, in every hierarchy."""
        return CGROUP_PREFIX + self.name


_BUILDS = {
    **dict.fromkeys(("kubectl", "helm"), "kubernetes_cli.py"),
    **dict.fromkeys(("containerd", "containerd-shim-runc-v2"), "build_go_tools.sh containerd"),
}


def has_containerd_2() -> bool:
    """Return whether the environment chooses containerd 2."""
    return os.environ.get(CONTAINERD_VARIABLE) == "2"


def runs_built_images() -> bool:
    """Return whether the environment chooses images that bring all that they need."""
    return os.environ.get(IMAGES_VARIABLE) == "built"


def tool(name: str) -> Path:
    """Return the path of the binary `name` in `.cache/bin`.

    Raises DevClusterError if it is not built or fetched yet.
    """
    path = BIN / name
    if not os.access(path, os.X_OK):
        script = _BUILDS.get(name, "build_components.sh")
        raise DevClusterError(
            f"{path} must exist and be executable, found none; run scripts/tools/{script} first"
        )
    return path


def python_command(module: str, *arguments: str) -> list[str]:
    """Return the argv that runs `module` of this package with the current interpreter."""
    return [sys.executable, "-m", f"devcluster.{module}", *arguments]


def python_environment() -> dict[str, str]:
    """Return the present environment for `python_command`, changed only to make this package importable."""
    package_parent = str(Path(__file__).resolve().parents[1])
    others = [
        part for part in os.environ.get("PYTHONPATH", "").split(os.pathsep) if part and part != package_parent
    ]
    return {**os.environ, "PYTHONPATH": os.pathsep.join([package_parent, *others]), "PYTHONUNBUFFERED": "1"}
