"""Fixtures of the tests of the Python client."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.kubectl_program import KubectlProgram


@pytest.fixture
def kubectl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> KubectlProgram:
    """A program kubectl on PATH that keeps FineTuneJobs in a folder."""
    program = KubectlProgram(tmp_path / "kubectl")
    monkeypatch.setenv("PATH", f"{program.path}:/usr/bin:/bin")
    return program
