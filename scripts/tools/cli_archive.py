"""Pack the command line into one file for each platform, with a manifest for krew.

    python scripts/tools/cli_archive.py FOLDER [--platform linux-amd64]... [--release URL]

FOLDER gets `finetune-PLATFORM.pyz`, which runs with any Python from 3.11 to 3.14, `kubectl-finetune-PLATFORM.tar.gz` for krew
with the same file, and `finetune.yaml`, krew's manifest. The versions are those of requirements/cli.txt. Compiled packages
are there once for each version of Python, side by side, because the names of their files contain the version.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import io
import os
import shutil
import subprocess
import sys
import tarfile
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
PYTHONS = ("3.11", "3.12", "3.13", "3.14")
PLATFORMS = {
    "linux-amd64": "x86_64-manylinux_2_28",
    "linux-arm64": "aarch64-manylinux_2_28",
    "darwin-arm64": "aarch64-apple-darwin",
}
"""Platforms by krew's name, with uv's. cryptography no longer has wheels for macOS on amd64."""
ENTRY = "finetune_cli.__main__:main"
# A fixed time, so that the same sources give the same bytes.
EPOCH = "1767225600"


def build(folder: Path, platforms: Sequence[str], release: str) -> list[Path]:
    """Write the archives and krew's manifest into `folder`; return the files."""
    folder.mkdir(parents=True, exist_ok=True)
    files, digests = [], {}
    with TemporaryDirectory() as scratch:
        wheel = _wheel(Path(scratch))
        tools = _tools(Path(scratch))
        for platform in platforms:
            archive = folder / f"finetune-{platform}.pyz"
            _pack(archive, _site(Path(scratch) / platform, platform, wheel), tools)
            krew = folder / f"kubectl-finetune-{platform}.tar.gz"
            krew.write_bytes(krew_archive(archive.read_bytes()))
            digests[platform] = hashlib.sha256(krew.read_bytes()).hexdigest()
            files += [archive, krew]
    manifest = folder / "finetune.yaml"
    manifest.write_text(yaml.safe_dump(krew_manifest(digests, _version(), release), sort_keys=False), "utf-8")
    return [*files, manifest]


def krew_archive(program: bytes) -> bytes:
    """Return the archive that krew unpacks, of the program and the license. The same program gives the same bytes."""
    content = io.BytesIO()
    with (
        gzip.GzipFile(fileobj=content, mode="wb", mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w") as archive,
    ):
        for name, data, mode in (
            ("kubectl-finetune", program, 0o755),
            ("LICENSE", (ROOT / "LICENSE").read_bytes(), 0o644),
        ):
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode, entry.mtime = len(data), mode, int(EPOCH)
            archive.addfile(entry, io.BytesIO(data))
    return content.getvalue()


def krew_manifest(digests: Mapping[str, str], version: str, release: str) -> dict[str, Any]:
    """Return krew's manifest for archives with these sha256 digests, by platform, that lie below the URL `release`."""
    return {
        "apiVersion": "krew.googlecontainertools.github.com/v1alpha2",
        "kind": "Plugin",
        "metadata": {"name": "finetune"},
        "spec": {
            "version": f"v{version}",
            "homepage": release.partition("/releases/")[0],
            "shortDescription": "Fine-tune language models",
            "description": (
                "Writes, checks, follows and compares FineTuneJobs, which the operator\n"
                "finetune turns into trained, merged and verified language models.\n"
            ),
            "caveats": "The plugin needs Python 3.11 to 3.14 as `python3`.\n",
            "platforms": [
                {
                    "selector": {
                        "matchLabels": {"os": platform.split("-")[0], "arch": platform.split("-")[1]}
                    },
                    "uri": f"{release}/kubectl-finetune-{platform}.tar.gz",
                    "sha256": digest,
                    "bin": "kubectl-finetune",
                    "files": [{"from": "kubectl-finetune", "to": "."}, {"from": "LICENSE", "to": "."}],
                }
                for platform, digest in digests.items()
            ],
        },
    }


def _version() -> str:
    return str(tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["version"])


def _run(*command: str | Path) -> None:
    environment = {**os.environ, "SOURCE_DATE_EPOCH": EPOCH}
    environment.pop("PYTHONPATH", None)
    subprocess.run([str(word) for word in command], check=True, cwd=ROOT, env=environment)


def _uv() -> Path:
    return Path(sys.executable).parent / "uv"


def _tools(scratch: Path) -> Path:
    """Return a Python that has shiv."""
    _run(_uv(), "venv", "--quiet", "--python", sys.executable, scratch / "tools")
    python = scratch / "tools" / "bin" / "python"
    _run(_uv(), "pip", "install", "--quiet", "--python", python, "--requirement", "requirements/archive.txt")
    return python


def _wheel(scratch: Path) -> Path:
    """Return the project's own wheel."""
    _run(sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", scratch / "wheel")
    return next((scratch / "wheel").glob("*.whl"))


def packages(platform: str, python: str, target: Path) -> list[str | Path]:
    """Return the command that puts the locked packages for a platform and a version of Python into a folder."""
    return [
        *(_uv(), "pip", "install", "--quiet", "--only-binary", ":all:", "--require-hashes"),
        *("--target", target, "--python-version", python, "--python-platform", PLATFORMS[platform]),
        *("--requirement", "requirements/cli.txt"),
    ]


def _site(folder: Path, platform: str, wheel: Path) -> Path:
    """Return a folder of packages for all versions of Python."""
    site = folder / "site"
    for python in PYTHONS:
        target = folder / python
        _run(*packages(platform, python, target))
        shutil.copytree(target, site, dirs_exist_ok=True)
    _run(_uv(), "pip", "install", "--quiet", "--no-deps", "--target", site, wheel)
    shutil.rmtree(site / "finetune_trainer", ignore_errors=True)  # it cannot run without torch
    return site


def _pack(archive: Path, site: Path, python: Path) -> None:
    _run(
        *(python, "-m", "shiv", "--site-packages", site, "--entry-point", ENTRY, "--output-file", archive),
        *("--python", "/usr/bin/env python3", "--compressed", "--reproducible"),
    )


def main() -> int:
    """Build and print the files with their sizes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="folder for the files")
    parser.add_argument("--platform", action="append", choices=PLATFORMS, help="repeatable; default: all")
    parser.add_argument(
        "--release",
        default="https://github.com/finetune-dev/finetune/releases/download/v" + _version(),
        help="URL below which the archives will lie",
    )
    options = parser.parse_args()
    for file in build(options.folder.resolve(), options.platform or list(PLATFORMS), options.release):
        print(f"{file} {file.stat().st_size / 2**20:.1f} MiB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
