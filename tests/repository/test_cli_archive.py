"""The archive of the command line for krew, and krew's manifest."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import re
import tarfile
from types import ModuleType

import pytest

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
