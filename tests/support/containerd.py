"""containerd 2 without Kubernetes, in mount and process namespaces of its own: it pulls an image and mounts it."""

from __future__ import annotations

import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from tests.support.servers.loopback import binary

# No plugin that needs a network, a kernel module or a folder outside of the given one.
_DISABLED = (
    "io.containerd.cri.v1.images",
    "io.containerd.cri.v1.runtime",
    "io.containerd.grpc.v1.cri",
    "io.containerd.internal.v1.opt",
    "io.containerd.nri.v1.nri",
    "io.containerd.snapshotter.v1.btrfs",
    "io.containerd.snapshotter.v1.zfs",
)
_CONFIG = """version = 2
root = "{folder}/root"
state = "{folder}/state"
disabled_plugins = [{disabled}]
[grpc]
  address = "{folder}/c.sock"
"""
# containerd ends with the process namespace, and its mounts with the mount namespace.
_SCRIPT = """set -e
"$1/containerd" --config "$2/config.toml" >"$2/log" 2>&1 &
until "$1/ctr" version >/dev/null 2>&1; do sleep 0.1; done
"$1/ctr" images pull --plain-http "$3" >"$2/pull" 2>&1
mkdir "$2/mounted"
"$1/ctr" images mount "$3" "$2/mounted" >"$2/mount" 2>&1
cd "$2/mounted"
stat -f -c %T . >"$2/kind"
if touch new 2>/dev/null; then exit 9; fi
find . -type f -exec sha256sum {} +
"""


@dataclass(frozen=True)
class MountedImage:
    """What a reader sees: the `sha256:` digest of each file by path, and the kind of file system."""

    files: dict[str, str]
    file_system: str


def mount_image(reference: str) -> MountedImage:
    """Pull an image from a registry that speaks http, and mount it read-only. It must take no writes."""
    programs = Path(binary("containerd")).parent
    # A socket's path must be short.
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        disabled = ", ".join(f'"{plugin}"' for plugin in _DISABLED)
        (folder / "config.toml").write_text(_CONFIG.format(folder=folder, disabled=disabled))
        command = [
            "unshare",
            "--mount",
            "--pid",
            "--fork",
            "--kill-child",
            "--mount-proc",
            "sh",
            "-c",
            _SCRIPT,
            "sh",
        ]
        ended = subprocess.run(
            [*command, str(programs), str(folder), reference],
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "CONTAINERD_ADDRESS": str(folder / "c.sock")},
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        said = {path.name: path.read_text()[-2000:] for path in folder.glob("*") if path.is_file()}
        assert ended.returncode == 0, (ended.returncode, ended.stderr, said)
        lines = (line.partition("  ") for line in ended.stdout.splitlines())
        files = {path.removeprefix("./"): f"sha256:{digest}" for digest, _, path in lines}
        return MountedImage(files, said["kind"].strip())
