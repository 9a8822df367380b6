"""What a release carries."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.publishing import make_folder
from tests.support.repository import ROOT

SCRIPT = ROOT / "scripts" / "release" / "verifier.sh"


@pytest.fixture
def release(tmp_path: Path) -> Path:
    """The folder with the files of a release."""
    subprocess.run([SCRIPT, tmp_path / "dist"], check=True, capture_output=True)
    return tmp_path / "dist"


def test_the_verifier_has_its_digest_beside_it(release: Path) -> None:
    assert sorted(path.name for path in release.iterdir()) == ["verify.py", "verify.py.sha256"]
    check = ["sha256sum", "--check", "verify.py.sha256"]
    assert subprocess.run(check, cwd=release, check=False, capture_output=True).returncode == 0
    (release / "verify.py").write_text("print('intact')")
    assert subprocess.run(check, cwd=release, check=False, capture_output=True).returncode == 1


def test_the_released_verifier_runs_alone_and_names_what_is_wrong(release: Path, tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "artifact", megabytes=0.1)
    (folder / "merged" / "config.json").write_text("{}")
    command = [sys.executable, "-I", str(release / "verify.py"), str(folder)]
    answer = subprocess.run(command, cwd=tmp_path, check=False, capture_output=True, text=True)
    assert answer.returncode == 1
    assert "ConfigChanged: merged/config.json" in answer.stdout + answer.stderr


def test_only_a_tag_gets_a_release_and_only_after_all_tests() -> None:
    workflow = (ROOT / ".github" / "workflows" / "release.yaml").read_text()
    job = workflow.partition("\n  verifier:\n")[2]
    assert "needs: test-full" in job
    assert "if: github.ref_type == 'tag'" in job
    assert "make verifier" in job
    assert workflow.count("contents: write") == job.count("contents: write") == 1
