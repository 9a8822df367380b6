"""The table of tiers, from the tests of a checkout and a JUnit file."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts.tools.tiers import collected, read, table

CASE = '<testcase classname="{}" name="x" time="{}"><properties><property name="tier" value="{}"/></properties></testcase>'
COUNTS = {"tests/e2e": {"test": 1, "full": 2}, "tests/unit/cli": {"unit": 1, "test": 1}}


def durations(folder: Path, *cases: tuple[str, float, str]) -> Path:
    """Write a JUnit file with the class, the seconds and the tier of each test."""
    path = folder / "durations.xml"
    text = "".join(CASE.format(*case) for case in cases)
    path.write_text(f"<testsuites><testsuite>{text}</testsuite></testsuites>")
    return path


def test_a_tier_holds_the_tests_of_the_tier_before_it(tmp_path: Path) -> None:
    path = durations(
        tmp_path,
        ("tests.unit.cli.plan.test_a", 30, "unit"),
        ("tests.unit.cli.test_b", 60, "test"),
        ("tests.e2e.test_c", 60, "test"),
        ("tests.e2e.test_d", 90, "full"),
    )
    assert table(COUNTS, read(path)).splitlines()[2:] == [
        "| `tests/e2e` |  | 1 test, 1.0 min | 3 tests, 2.5 min |",
        "| `tests/unit/cli` | 1 test, 0.5 min | 2 tests, 1.5 min | 2 tests, 1.5 min |",
        "| all | 1 test, 0.5 min | 3 tests, 2.5 min | 5 tests, 4.0 min |",
    ]


def test_a_tier_that_was_not_run_has_its_tests_and_no_time(tmp_path: Path) -> None:
    path = durations(tmp_path, ("tests.unit.cli.test_a", 30, "unit"), ("tests.e2e.test_c", 60, "test"))
    assert table(COUNTS, read(path)).splitlines()[2:] == [
        "| `tests/e2e` |  | 1 test, 1.0 min | 3 tests |",
        "| `tests/unit/cli` | 1 test, 0.5 min | 2 tests, 0.5 min | 2 tests |",
        "| all | 1 test, 0.5 min | 3 tests, 1.5 min | 5 tests |",
    ]


def test_the_tests_of_a_checkout_are_counted_by_folder_and_tier() -> None:
    found = collected("tests/images/test_supply_chain.py")
    assert found.keys() == {"tests/images"}
    assert found["tests/images"].keys() == {"full"}
    assert found["tests/images"]["full"] >= 12


def test_a_missing_file_is_named_with_the_command_that_makes_it(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="run `make test`"):
        read(tmp_path / "none.xml")
