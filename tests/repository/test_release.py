"""What a release carries."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

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


WORKFLOW = yaml.safe_load((ROOT / ".github" / "workflows" / "release.yaml").read_text())
JOBS: dict[str, Any] = WORKFLOW["jobs"]


def commands(job: str) -> str:
    """Return all that a job of the release runs."""
    return "\n".join(step.get("run", "") for step in JOBS[job]["steps"])


def test_only_a_tag_gets_a_release_and_only_after_all_tests() -> None:
    assert {name for name, job in JOBS.items() if job.get("if") != "github.ref_type == 'tag'"} == {
        "test-full"
    }
    assert JOBS["images"]["needs"] == ["notes", "test-full"]
    assert JOBS["release"]["needs"] == "images"
    assert "make test-full" in commands("test-full")


def test_only_the_last_job_may_write_and_only_it_and_the_images_see_secrets() -> None:
    assert WORKFLOW["permissions"] == {"contents": "read"}
    assert {name for name, job in JOBS.items() if "permissions" in job} == {"release"}
    secret = {name for name, job in JOBS.items() if "secrets." in yaml.safe_dump(job)}
    assert (
        secret
        == {name for name, job in JOBS.items() if job.get("environment") == "release"}
        == {"images", "release"}
    )


@pytest.mark.parametrize("name", ["release", "test"])
def test_workflows_pin_actions_to_commits_and_leave_no_credentials_in_the_checkout(name: str) -> None:
    jobs = yaml.safe_load((ROOT / f".github/workflows/{name}.yaml").read_text())["jobs"]
    steps = [step for job in jobs.values() for step in job["steps"] if "uses" in step]
    assert steps
    for step in steps:
        assert re.fullmatch(r"actions/[a-z-]+@[0-9a-f]{40}", step["uses"])
        if step["uses"].startswith("actions/checkout@"):
            assert step["with"]["persist-credentials"] is False


def test_a_release_takes_nothing_from_a_cache_that_another_workflow_fills() -> None:
    steps = [step for job in JOBS.values() for step in job["steps"]]
    builds = [step["with"] for step in steps if step.get("uses", "").startswith("actions/setup-go@")]
    assert builds
    assert [build for build in builds if build["cache"] is not False] == []
    assert [step for step in steps if "actions/cache" in step.get("uses", "")] == []


def test_the_scripts_and_targets_of_the_release_exist() -> None:
    text = "\n".join(map(commands, JOBS))
    scripts = set(re.findall(r"scripts/release/\w+\.sh", text))
    targets = " ".join(re.findall(r"make ([a-z -]+)", text)).split()
    assert scripts == {f"scripts/release/{name}.sh" for name in ("push_image", "sign", "push_chart")}
    assert all(os.access(ROOT / script, os.X_OK) for script in scripts)
    assert {"verifier", "cli-archive", "supply-chain"} <= set(targets)
    makefile = (ROOT / "Makefile").read_text()
    assert [target for target in targets if f"\n{target}:" not in makefile] == []


def test_every_name_at_docker_hub_has_one_organization_and_one_repository() -> None:
    """Docker Hub refuses a push to a deeper path, after all tests and with the images already published."""
    pages = [*ROOT.glob("docs/*.md"), ROOT / "README.md"]
    texts = [page.read_text() for page in pages] + [yaml.safe_dump(WORKFLOW)]
    named = {name for text in texts for name in re.findall(r"docker\.io/([a-z/-]*[a-z])", text)}
    assert {"finetune", "finetune/finetune-operator", "finetune/trainer"} <= named
    assert [name for name in named if name.count("/") > 1] == []
