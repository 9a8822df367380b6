"""What .checkov.yaml leaves out is answered in docs/scanners.md."""

from __future__ import annotations

import itertools
import re

import yaml

from tests.support.repository import ROOT

CONFIG = ROOT / ".checkov.yaml"


def answered() -> list[str]:
    checks: list[str] = yaml.safe_load(CONFIG.read_text())["skip-check"]
    return checks


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
