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
from devcluster.layout import BIN

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


@pytest.mark.full
@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13", "3.14"])
def test_every_platform_of_a_release_has_wheels_of_all_locked_packages(
    archive: ModuleType, python: str, tmp_path: Path
) -> None:
    """A package without one would break the release after its images are published."""
    assert python in archive.PYTHONS
    for platform in archive.PLATFORMS:
        command = [str(word) for word in archive.packages(platform, python, tmp_path)]
        done = subprocess.run([*command, "--dry-run"], cwd=ROOT, check=False, capture_output=True, text=True)
        assert done.returncode == 0, f"{platform}: {done.stderr}"


def test_the_entry_point_is_that_of_the_installed_command(archive: ModuleType) -> None:
    assert f'finetune = "{archive.ENTRY}"' in (ROOT / "pyproject.toml").read_text("utf-8")


@pytest.fixture(scope="module")
def built(archive: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The program, krew's archive and krew's manifest for this platform. Fetches wheels for all versions of Python."""
    files: list[Path] = archive.build(tmp_path_factory.mktemp("archive"), ["linux-amd64"], RELEASE)
    return files


@pytest.mark.full
def test_the_file_of_this_platform_runs_alone_and_its_digest_is_in_the_manifest(
    archive: ModuleType, built: list[Path], tmp_path: Path
) -> None:
    program, krew, manifest = built
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


@pytest.mark.full
def test_krews_own_validator_accepts_the_manifest_of_all_platforms(
    archive: ModuleType, tmp_path: Path
) -> None:
    digests = dict.fromkeys(archive.PLATFORMS, "0" * 64)
    manifest = tmp_path / "finetune.yaml"
    manifest.write_text(yaml.safe_dump(archive.krew_manifest(digests, "1.2.3", RELEASE)), "utf-8")
    checked = krew("validate-krew-manifest", tmp_path, "-manifest", manifest, "-skip-install")
    assert checked.returncode == 0, checked.stderr
    manifest.write_text(manifest.read_text("utf-8").replace("v1.2.3", "1.2.3"), "utf-8")
    assert krew("validate-krew-manifest", tmp_path, "-manifest", manifest, "-skip-install").returncode != 0


@pytest.mark.full
def test_krew_installs_the_archive_and_kubectl_finds_the_plugin(built: list[Path], tmp_path: Path) -> None:
    _program, packed, manifest = built
    installed = krew("krew", tmp_path, "install", f"--manifest={manifest}", f"--archive={packed}")
    assert installed.returncode == 0, installed.stderr
    shown = subprocess.run(
        [BIN / "kubectl", "finetune", "plan", "--help"],
        env=environment_of(tmp_path), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.startswith("Usage: kubectl finetune plan")


def krew(program: str, root: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a program of tools/krew, whose plugins are below `root`."""
    path = BIN / program
    assert path.exists(), f"{path} must be built, found none; run `make krew`"
    return subprocess.run(
        [path, *arguments],
        env=environment_of(root), stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
    )  # fmt: skip


def environment_of(root: Path) -> dict[str, str]:
    """Variables with krew's folder, and with a Python that has none of this repository's packages."""
    path = f"{root}/krew/bin:/usr/bin:/bin"
    return {"PATH": path, "HOME": str(root), "KREW_ROOT": f"{root}/krew"}
