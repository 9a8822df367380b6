"""Container images without a builder or a registry.

The images are thin: one layer of busybox, its links and a user database. The runtime
adds the product: the base runtime spec of the dev cluster's containerd mounts this machine's libraries, the Python
installation and this checkout, read-only, into every container (`runtime_spec`). A real image of the trainer is 1.7 GB
and takes over a minute to import on two cores; this one is 1 MB. Pod specs are the same as users' pod specs: they have
no hostPath volume, so namespaces can enforce the restricted Pod Security level. `make images` builds the product's real
images from their Dockerfiles, and a cluster with `DEVCLUSTER_IMAGES=built` adds nothing to them.
"""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from devcluster.errors import DevClusterError
from devcluster.layout import PAUSE_IMAGE, REPOSITORY, runs_built_images

BUSYBOX = Path("/bin/busybox")
# The checkout's path in every container, independent of its path on this machine: otherwise the emptyDir that restricted
# # pods mount at /tmp would hide a clone under /tmp.
PRODUCT_ROOT = "/opt/finetune"
NONROOT = 65532

OPERATOR_IMAGE = "docker.io/finetune/operator:dev"
TRAINER_IMAGE = "docker.io/finetune/trainer:dev"

_FOLDERS = {"bin": 0o755, "dev": 0o755, "etc": 0o755, "home": 0o755, "opt": 0o755, "proc": 0o755, "run": 0o755, "sys": 0o755,
            "tmp": 0o1777, "usr": 0o755, "var": 0o755}  # fmt: skip
_LINKS = (
    "ash", "awk", "base64", "basename", "cat", "chmod", "cp", "cut", "date", "dd", "df", "dirname", "du", "echo", "env", "false",
    "find", "grep", "head", "hostname", "id", "kill", "ln", "ls", "md5sum", "mkdir", "mktemp", "mv", "nc", "ps", "pwd", "rm",
    "rmdir", "sed", "seq", "sh", "sha256sum", "sleep", "sort", "stat", "sync", "tail", "tar", "tee", "test", "touch", "tr", "true",
    "tty", "uname", "wc", "whoami", "xargs",
)  # fmt: skip
_FILES = {
    # As in the images of a release, the user of the product has no name.
    "etc/passwd": "root:x:0:0:root:/root:/bin/sh\n",
    "etc/group": "root:x:0:\n",
    "etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\n",
}


@dataclass(frozen=True)
class ThinImage:
    """A thin image: its full name, its argv, its environment and its numeric user."""

    name: str
    entrypoint: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)
    user: int = NONROOT


def product_image(name: str, module: str, *first: str) -> ThinImage:
    """Return the image `name` that runs the Python module `module` of this checkout in the checkout's environment.

    `first` is the program that starts it, with its arguments.
    """
    sources = ("operator/src", "trainer_image/src", "cli/src")
    environment = {
        # HOME can be read-only, so all caches of libraries go to the one folder that pods must make writable.
        "HOME": "/tmp",  # noqa: S108  the pod's emptyDir
        # The sources come first, so that the image runs this checkout's code even if the environment installed other code.
        "PYTHONPATH": ":".join(f"{PRODUCT_ROOT}/{source}" for source in sources),
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONUNBUFFERED": "1",
        # scripts/tools/compile_kernels.sh compiles them for exactly this path.
        "FINETUNE_KERNELS": f"{PRODUCT_ROOT}/.cache/kernels",
    }
    return ThinImage(name, [*first, f"{PRODUCT_ROOT}/.venv/bin/python", "-m", module], environment)


PAUSE = ThinImage(PAUSE_IMAGE, ["/bin/sleep", "2147483647"])
PRODUCT_IMAGES = (
    product_image(OPERATOR_IMAGE, "finetune_operator"),
    product_image(TRAINER_IMAGE, "finetune_trainer", "tini", "--"),
)


def _digest(content: bytes) -> str:
    return "sha256:" + hashlib.sha256(content).hexdigest()


def _entry(name: str, kind: bytes, mode: int, link: str = "", size: int = 0) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.type, entry.mode, entry.linkname, entry.size = kind, mode, link, size
    return entry


def _layer(busybox: bytes) -> bytes:
    """Return the only layer as a tar; the same input gives the same bytes."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, mode in _FOLDERS.items():
            archive.addfile(_entry(name, tarfile.DIRTYPE, mode))
        files = {"bin/busybox": (busybox, 0o755)} | {
            name: (text.encode(), 0o644) for name, text in _FILES.items()
        }
        for name, (content, mode) in files.items():
            archive.addfile(_entry(name, tarfile.REGTYPE, mode, size=len(content)), io.BytesIO(content))
        for name in _LINKS:
            archive.addfile(_entry(f"bin/{name}", tarfile.SYMTYPE, 0o777, link="busybox"))
    return buffer.getvalue()


def _descriptor(kind: str, content: bytes, **more: Any) -> dict[str, Any]:
    media_type = f"application/vnd.oci.image.{kind}"
    return {"mediaType": media_type, "digest": _digest(content), "size": len(content), **more}


def oci_archive(images: Iterable[ThinImage]) -> bytes:
    """Return an OCI image layout as a tar for `ctr images import`; the images share their layer.

    Raises DevClusterError if Debian's static busybox is not installed.
    """
    if not BUSYBOX.is_file():
        raise DevClusterError(
            f"{BUSYBOX} must be a static busybox, found none; run scripts/tools/apt_packages.sh"
        )
    layer = _layer(BUSYBOX.read_bytes())
    blobs, manifests = [layer], []
    for image in images:
        # As in the images of a release, `python` is that of the product.
        environment = {"PATH": f"{PRODUCT_ROOT}/.venv/bin:/usr/local/bin:/usr/bin:/bin"} | dict(
            image.environment
        )
        config = {
            "architecture": "amd64",
            "os": "linux",
            "config": {
                "Entrypoint": list(image.entrypoint),
                "Env": [f"{key}={value}" for key, value in environment.items()],
                "User": f"{image.user}:{image.user}",
                "WorkingDir": "/",
            },
            "rootfs": {"type": "layers", "diff_ids": [_digest(layer)]},
        }
        config_blob = json.dumps(config, sort_keys=True).encode()
        manifest = {
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": _descriptor("config.v1+json", config_blob),
            "layers": [_descriptor("layer.v1.tar", layer)],
        }
        manifest_blob = json.dumps(manifest, sort_keys=True).encode()
        blobs += [config_blob, manifest_blob]
        annotations = {"io.containerd.image.name": image.name}
        manifests.append(_descriptor("manifest.v1+json", manifest_blob, annotations=annotations))
    files = {"oci-layout": b'{"imageLayoutVersion":"1.0.0"}'}
    files["index.json"] = json.dumps({"schemaVersion": 2, "manifests": manifests}, sort_keys=True).encode()
    files |= {f"blobs/sha256/{_digest(blob).removeprefix('sha256:')}": blob for blob in blobs}
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in files.items():
            archive.addfile(_entry(name, tarfile.REGTYPE, 0o644, size=len(content)), io.BytesIO(content))
    return buffer.getvalue()


def import_images(socket: Path, images: Iterable[ThinImage]) -> None:
    """Import `images` into the kubelet's namespace of the containerd at `socket`.

    Raises DevClusterError if ctr reports an error.
    """
    with tempfile.NamedTemporaryFile(suffix=".tar") as archive:
        archive.write(oci_archive(images))
        archive.flush()
        _import(socket, archive.name)


def import_layout(socket: Path, folder: Path) -> None:
    """Import the image in `folder`, an OCI image layout, into the kubelet's namespace of the containerd at `socket`.

    Raises DevClusterError if ctr reports an error.
    """
    command = ["tar", "--create", "--file", "-", "--directory", str(folder), "."]
    # Not through a file: images have gigabytes.
    with subprocess.Popen(command, stdout=subprocess.PIPE) as packing:
        _import(socket, "-", packing.stdout)


def _import(socket: Path, source: str, content: IO[bytes] | None = None) -> None:
    command = ["ctr", "--address", str(socket), "--namespace", "k8s.io", "images", "import", source]
    answer = subprocess.run(command, stdin=content, capture_output=True, text=True, check=False)
    if answer.returncode != 0:
        raise DevClusterError(
            f"ctr must import the images, it ended with {answer.returncode}: {answer.stderr.strip()}"
        )


def _readonly(source: Path, destination: str) -> dict[str, Any]:
    return {"destination": destination, "type": "bind", "source": str(source), "options": ["rbind", "ro"]}


def machine_mounts() -> list[dict[str, Any]]:
    """Return read-only mounts (OCI runtime spec) that add this machine's programs and this checkout to every container.

    The checkout's present folders are mounted one by one, without `.git`. This works even if other users cannot open the
    checkout's folder: the runtime creates the parents of mount points with access for all users.
    """
    system = [
        Path(path) for path in ("/usr", "/lib", "/lib64", "/etc/ssl", "/etc/alternatives", "/etc/ld.so.cache")
    ]
    mounts = [_readonly(path.resolve(), str(path)) for path in system if path.exists()]
    python = Path(sys.base_prefix).resolve()
    if not python.is_relative_to("/usr"):
        # At the same path, because the environment's interpreter is a link to it.
        mounts.append(_readonly(python, str(python)))
    for folder in sorted(REPOSITORY.iterdir()):
        if folder.is_dir() and folder.name != ".git":
            mounts.append(_readonly(folder.resolve(), f"{PRODUCT_ROOT}/{folder.name}"))
    return mounts


def runtime_spec(default_spec: str) -> str:
    """Return the base runtime spec: `default_spec` (from `ctr oci spec`) with `machine_mounts` and without resource limits.

    With built images there are no mounts. The default limits a process to 1024 open files, fewer than torch's data loaders use.
    """
    spec = json.loads(default_spec)
    spec["process"].pop("rlimits", None)
    if not runs_built_images():
        spec["mounts"] += machine_mounts()
    return json.dumps(spec, indent=2)
