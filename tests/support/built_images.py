"""The images that `make images` builds without Docker."""

from __future__ import annotations

import json
import subprocess
from functools import cache
from pathlib import Path

import pytest

from tests.support.repository import ROOT

SCRIPT = ROOT / "scripts" / "tools" / "build_images.sh"
DOCKERFILES = {"operator": "operator/Dockerfile", "trainer": "trainer_image/Dockerfile"}
_SHOWN = 4000


def name_of(image: str, tag: str = "built") -> str:
    """Return the full name of the image `operator` or `trainer`."""
    return f"docker.io/finetune/{image}:{tag}"


def build(tag: str = "built", context: Path = ROOT, *images: str) -> None:
    """Build images, or all; layers whose input is that of an earlier build are taken from there."""
    command = [str(SCRIPT), tag, str(context), *images]
    ended = subprocess.run(command, check=False, capture_output=True, text=True)
    if ended.returncode != 0:
        pytest.fail(f"the images must build, found: {(ended.stdout + ended.stderr)[-_SHOWN:]}")


@cache
def built() -> None:
    """Build both images of this checkout once a process."""
    build()


def buildah(*arguments: str) -> str:
    """Call buildah on the storage of the images, and return what it prints."""
    command = [str(SCRIPT), "buildah", *arguments]
    ended = subprocess.run(command, check=False, capture_output=True, text=True)
    if ended.returncode != 0:
        pytest.fail(f"buildah {arguments[0]} must succeed, found: {ended.stderr[-_SHOWN:]}")
    return ended.stdout


def layers(name: str) -> list[str]:
    """Return the digests of an image's layers, the base's first."""
    found: list[str] = json.loads(buildah("inspect", "--type", "image", name))["OCIv1"]["rootfs"]["diff_ids"]
    return found


def write_layout(name: str, folder: Path) -> Path:
    """Write an image as an OCI image layout, with the name that containerd gives it, and return the folder."""
    # zstd packs several times as fast as gzip, and containerd reads both.
    options = ("--format", "oci", "--compression-format", "zstd", "--compression-level", "1")
    buildah("push", "--quiet", *options, name, f"oci:{folder}:{name}")
    index = json.loads((folder / "index.json").read_text())
    for manifest in index["manifests"]:
        manifest["annotations"]["io.containerd.image.name"] = name
    (folder / "index.json").write_text(json.dumps(index))
    return folder


def push(name: str, reference: str, folder: Path) -> str:
    """Push an image to a registry without TLS, and return its digest."""
    digest = folder / "digest"
    buildah(
        "push", "--quiet", "--tls-verify=false", "--digestfile", str(digest), name, f"docker://{reference}"
    )
    return digest.read_text()
