"""The table of tiers, from a JUnit file."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts.tools.tiers import read, table

CASE = '<testcase classname="{}" name="x" time="{}"><properties><property name="tier" value="{}"/></properties></testcase>'


def test_a_tier_holds_the_tests_of_the_tier_before_it(tmp_path: Path) -> None:
    cases = [
        ("tests.unit.cli.plan.test_a", 30, "unit"),
        ("tests.unit.cli.test_b", 60, "test"),
        ("tests.e2e.test_c", 90, "full"),
    ]
    path = tmp_path / "durations.xml"
    path.write_text(
        f"<testsuites><testsuite>{''.join(CASE.format(*case) for case in cases)}</testsuite></testsuites>"
    )
    assert table(read(path)).splitlines()[2:] == [
        "| `tests/e2e` |  |  | 1 tests, 1.5 min |",
        "| `tests/unit/cli` | 1 tests, 0.5 min | 2 tests, 1.5 min | 2 tests, 1.5 min |",
        "| all | 1 tests, 0.5 min | 2 tests, 1.5 min | 3 tests, 3.0 min |",
    ]


def test_a_missing_file_is_named_with_the_command_that_makes_it(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="run `make test`"):
        read(tmp_path / "none.xml")
