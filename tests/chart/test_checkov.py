"""What checkov finds in the chart and the Dockerfiles: nothing but what .checkov.yaml and docs/scanners.md answer."""

from __future__ import annotations

import itertools
import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.chart import CHART, NAMESPACE, RELEASE, helm
from tests.support.repository import ROOT

CHECKOV = ROOT / ".cache" / "checkers" / "bin" / "checkov"
CONFIG = ROOT / ".checkov.yaml"
ONLY_WITH_DEFAULT_VALUES = {"CKV_K8S_43", "CKV2_K8S_6"}
"""Checks that the values of strict-values.yaml pass."""
Findings = dict[str, set[str]]


def answered() -> list[str]:
    checks: list[str] = yaml.safe_load(CONFIG.read_text())["skip-check"]
    return checks


def checkov(framework: str, files: list[Path], *options: str | Path) -> subprocess.CompletedProcess[str]:
    """Scan files without asking anything outside."""
    if not CHECKOV.exists():
        pytest.fail(f"checkov must be at {CHECKOV}: run make checkers first")
    command = [CHECKOV, "--framework", framework, "--skip-download", *options, "--file", *files]
    return subprocess.run(
        list(map(str, command)), check=False, capture_output=True, text=True, cwd=files[0].parent
    )


def findings(framework: str, files: list[Path]) -> Findings:
    """Return the failed checks of each file by its folder's or its own name, without any configuration."""
    ended = checkov(framework, files, "--quiet", "--compact", "--output", "json")
    report: dict[str, Any] = json.loads(ended.stdout)
    found: Findings = {str(file): set() for file in files}
    for check in report["results"]["failed_checks"]:
        (file,) = (name for name in found if name.endswith(check["file_path"].lstrip("/")))
        found[file].add(check["check_id"])
    assert report["summary"]["parsing_errors"] == 0
    assert report["summary"]["passed"] > 100
    return found


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The chart with the default and the strict values."""
    folder = tmp_path_factory.mktemp("rendered")
    files = {}
    for name in ("default", "strict"):
        values = CHART / "ci" / f"{name}-values.yaml"
        done = helm("template", RELEASE, str(CHART), "--namespace", NAMESPACE, "--values", str(values))
        assert done.returncode == 0, done.stderr
        files[name] = folder / f"{name}.yaml"
        files[name].write_text(done.stdout)
    return files


@pytest.fixture(scope="module")
def chart_findings(rendered: dict[str, Path]) -> Findings:
    # One by one, because a NetworkPolicy of one file would cover the pods of the other.
    return {name: findings("kubernetes", [file])[str(file)] for name, file in rendered.items()}


@pytest.mark.full
def test_the_default_values_have_only_findings_that_are_answered(chart_findings: Findings) -> None:
    assert chart_findings["default"] <= set(answered())


@pytest.mark.full
def test_strict_values_have_digests_and_a_network_policy_for_each_pod(chart_findings: Findings) -> None:
    assert chart_findings["strict"] <= set(answered()) - ONLY_WITH_DEFAULT_VALUES


@pytest.mark.full
def test_every_answer_is_still_needed_and_the_dockerfiles_need_no_other(chart_findings: Findings) -> None:
    of_images = set[str]().union(
        *findings("dockerfile", [ROOT / "operator/Dockerfile", ROOT / "trainer_image/Dockerfile"]).values()
    )
    assert of_images | chart_findings["default"] | chart_findings["strict"] == set(answered())


@pytest.mark.full
def test_the_documented_command_ends_without_a_finding(rendered: dict[str, Path]) -> None:
    ended = checkov("kubernetes", [rendered["default"]], "--config-file", CONFIG)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "Failed checks: 0" in ended.stdout


def test_the_page_answers_each_check_that_is_left_out_with_a_reason() -> None:
    page = (ROOT / "docs" / "scanners.md").read_text()
    rows = re.findall(r"^\| (`CKV.*?) \| .+ \| (.+) \|$", page, re.MULTILINE)
    named = [check for checks, _ in rows for check in re.findall(r"`(\w+)`", checks)]
    assert sorted(named) == sorted(answered())
    lines = CONFIG.read_text().splitlines()
    without_comment = [
        line
        for above, line in itertools.pairwise(lines)
        if line.startswith("  - ") and not above.lstrip().startswith(("#", "- "))
    ]
    assert without_comment == []
