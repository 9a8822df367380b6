"""The archive of the command line for krew, and krew's manifest."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from tests.support.repository import ROOT

RELEASE = "https://github.com/org/finetune/releases/download/v1.2.3"


@pytest.fixture(scope="module")
def archive() -> ModuleType:
    """Load scripts/tools/cli_archive.py by path, like a script."""
    path = ROOT / "scripts/tools/cli_archive.py"
    specification = importlib.util.spec_from_file_location("cli_archive", path)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def test_the_archive_has_the_program_and_the_license_with_the_same_bytes_each_time(
    archive: ModuleType,
) -> None:
    content = archive.krew_archive(b"#!/usr/bin/env python3\n")
    assert content == archive.krew_archive(b"#!/usr/bin/env python3\n")
    with tarfile.open(fileobj=io.BytesIO(content)) as packed:
        assert [(entry.name, entry.mode) for entry in packed] == [
            ("kubectl-finetune", 0o755),
            ("LICENSE", 0o644),
        ]


def test_the_manifest_has_what_krew_demands(archive: ModuleType) -> None:
    digests = {platform: hashlib.sha256(platform.encode()).hexdigest() for platform in archive.PLATFORMS}
    manifest = archive.krew_manifest(digests, "1.2.3", RELEASE)
    spec = manifest["spec"]
    assert manifest["apiVersion"] == "krew.googlecontainertools.github.com/v1alpha2"
    assert re.fullmatch(r"v\d+\.\d+\.\d+", spec["version"])
    assert len(spec["shortDescription"]) <= 50
    assert spec["homepage"] == "https://github.com/org/finetune"
    selectors = [platform["selector"]["matchLabels"] for platform in spec["platforms"]]
    assert [f"{labels['os']}-{labels['arch']}" for labels in selectors] == list(archive.PLATFORMS)
    for platform in spec["platforms"]:
        assert platform["bin"] in {file["from"] for file in platform["files"]}
        assert platform["uri"].startswith(f"{RELEASE}/kubectl-finetune-")


def test_the_entry_point_is_that_of_the_installed_command(archive: ModuleType) -> None:
    assert f'finetune = "{archive.ENTRY}"' in (ROOT / "pyproject.toml").read_text("utf-8")


@pytest.mark.full
def test_the_file_of_this_platform_runs_alone_and_its_digest_is_in_the_manifest(
    archive: ModuleType, tmp_path: Path
) -> None:
    """The wheels of all versions of Python are fetched, so this takes a minute."""
    files = archive.build(tmp_path, ["linux-amd64"], RELEASE)
    program, krew, manifest = files
    environment = {"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin", "HOME": str(tmp_path)}
    done = subprocess.run([program, "--help"], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "plan" in done.stdout
    (listed,) = yaml.safe_load(manifest.read_text())["spec"]["platforms"]
    assert listed["sha256"] == hashlib.sha256(krew.read_bytes()).hexdigest()
    with zipfile.ZipFile(program) as packed:
        names = packed.namelist()
    for version in archive.PYTHONS:
        assert [
            name for name in names if f"cpython-{version.replace('.', '')}-x86_64-linux-gnu.so" in name
        ], version
