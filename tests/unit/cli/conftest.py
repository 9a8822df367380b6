"""Fixtures of the tests of the command line."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.fake_kubectl import FakeKubectl
from tests.support.kubectl_program import KubectlProgram


@pytest.fixture
def kubectl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeKubectl:
    """A kubectl on PATH that answers by rules."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    return FakeKubectl(folder)


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> KubectlProgram:
    """A kubectl on PATH that keeps FineTuneJobs in a folder."""
    program = KubectlProgram(tmp_path / "kubectl")
    monkeypatch.setenv("PATH", f"{program.path}:/usr/bin:/bin")
    return program
