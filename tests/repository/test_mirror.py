"""The comparison of tests and modules, on small trees."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts.lint.mirror import faults, has_behavior

MODULE = "operator/src/finetune_operator/api/plan.py"
TEST = "tests/unit/operator/api/test_plan.py"


def tree(root: Path, files: dict[str, str], table: str = "") -> Path:
    """Write a repository with the given files and the given lines of the table."""
    for name, content in {"tests/README.md": table, **files}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return root


@pytest.mark.parametrize(
    ("source", "behavior"),
    [
        ("LIMIT = 3\n", False),
        ("def double(x: int) -> int:\n    return 2 * x\n", True),
        ("class Point:\n    x: int\n    @property\n    def y(self) -> int:\n        return self.x\n", True),
        ('class Clock(Protocol):\n    def now(self) -> int:\n        """The time."""\n', False),
        ("class Clock(Protocol):\n    def now(self) -> int: ...\n", False),
        ("class Bad(ValueError):\n    def __init__(self) -> None:\n        super().__init__('bad')\n", False),
    ],
)
def test_behavior_is_a_function_that_does_something(source: str, *, behavior: bool) -> None:
    assert has_behavior(source) is behavior


def test_a_module_needs_its_test_or_a_line_of_the_table(tmp_path: Path) -> None:
    code = {MODULE: "def f() -> int:\n    return 1\n"}
    assert faults(tree(tmp_path / "none", code)) == [
        f"{MODULE} must have its test in {TEST}; add it, or a line to the table in tests/README.md"
    ]
    assert faults(tree(tmp_path / "own", {**code, TEST: ""})) == []
    row = f"| `{MODULE}` | `tests/e2e/test_all.py` |\n"
    assert faults(tree(tmp_path / "covered", {**code, "tests/e2e/test_all.py": ""}, row)) == []


@pytest.mark.parametrize(
    ("files", "module", "cover", "fault"),
    [
        ({}, MODULE, TEST, "must name modules that exist"),
        ({MODULE: "", TEST: ""}, MODULE, TEST, "must not list"),
        ({MODULE: ""}, MODULE, "tests/e2e/test_none.py", "must name test files that exist"),
    ],
)
def test_a_stale_line_of_the_table_is_a_fault(
    tmp_path: Path, files: dict[str, str], module: str, cover: str, fault: str
) -> None:
    found = faults(tree(tmp_path, files, f"| `{module}` | `{cover}` |\n"))
    assert any(fault in line for line in found)


@pytest.mark.parametrize(
    ("name", "content", "fault"),
    [
        ("tests/unit/cli/helpers.py", "", "is neither a test file nor a conftest.py"),
        ("tests/support/test_all.py", "", "must be outside tests/support"),
        (
            "tests/unit/cli/test_a.py",
            "from tests.unit.cli.test_b import x\n",
            "found tests.unit.cli.test_b.x",
        ),
        ("tests/unit/cli/test_a.py", "import tests.unit.cli.conftest\n", "found tests.unit.cli.conftest"),
        ("tests/unit/cli/test_a.py", f"def test_{'a' * 76}() -> None: ...\n", "found 81"),
    ],
)
def test_a_misplaced_helper_or_a_long_name_is_a_fault(
    tmp_path: Path, name: str, content: str, fault: str
) -> None:
    (found,) = faults(tree(tmp_path, {name: content}))
    assert fault in found


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tests/unit/cli/conftest.py", ""),
        ("tests/support/builders.py", ""),
        (
            "tests/unit/cli/test_a.py",
            "from tests.support import builders\nfrom tests.support.e2e import jobs\n",
        ),
        ("tests/unit/cli/test_a.py", f"def test_{'a' * 75}() -> None: ...\n"),
    ],
)
def test_what_the_rules_allow_is_no_fault(tmp_path: Path, name: str, content: str) -> None:
    assert faults(tree(tmp_path, {name: content})) == []
