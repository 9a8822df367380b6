"""Check that the tests mirror the modules: the places of tests and helpers, and the length of test names.

A module has behavior if a function or method in it does something. Functions without a body (protocols, overloads) and
methods of exceptions do not count. So constants, protocols and exceptions need no test. A module with behavior has
`tests/unit/<package>/<its path>/test_<its name>.py`, or a line in the table "Modules without a unit test" of tests/README.md.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = {
    "operator": "operator/src/finetune_operator",
    "trainer": "trainer_image/src/finetune_trainer",
    "cli": "cli/src/finetune_cli",
    "client": "cli/src/finetune_client",
}
LONGEST_NAME = 80
# One line of the table: the module, and the test file that covers it.
ROW = re.compile(r"^\| `([^`]+\.py)` \| `([^`]+\.py)`[^|]*\|$", re.MULTILINE)

_FUNCTION = (ast.FunctionDef, ast.AsyncFunctionDef)


def has_behavior(source: str) -> bool:
    """Return True if a function or method in `source` does something."""
    return any(_acts(node) for node in ast.parse(source).body)


def _acts(node: ast.stmt) -> bool:
    if isinstance(node, _FUNCTION):
        return not all(_says_nothing(statement) for statement in node.body)
    if isinstance(node, ast.ClassDef):
        return not _is_exception(node) and any(_acts(member) for member in node.body)
    return False


def _says_nothing(statement: ast.stmt) -> bool:
    """Return True for a docstring, `...` or `pass`."""
    return isinstance(statement, ast.Pass) or (
        isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
    )


def _is_exception(node: ast.ClassDef) -> bool:
    return any(ast.unparse(base).endswith(("Error", "Exception")) for base in node.bases)


def own_test(package: str, module: Path) -> Path:
    """Return the test file, relative to the repository's root, of the module at the path `module` inside its package."""
    return Path("tests/unit", package, module.parent, f"test_{module.stem.strip('_')}.py")


def missing_tests(root: Path, covered: dict[str, str]) -> Iterator[str]:
    """List modules with behavior that have neither a test file nor a line in the table."""
    for package, sources in PACKAGES.items():
        for path in sorted((root / sources).rglob("*.py")):
            name, test = (
                path.relative_to(root).as_posix(),
                own_test(package, path.relative_to(root / sources)),
            )
            if has_behavior(path.read_text()) and not (root / test).is_file() and name not in covered:
                yield f"{name} must have its test in {test}; add it, or a line to the table in tests/README.md"


def stale_lines(root: Path, covered: dict[str, str]) -> Iterator[str]:
    """List lines of the table that name a missing file, or a module that needs no line."""
    tests = {
        (root / sources / module).relative_to(root).as_posix(): own_test(package, module)
        for package, sources in PACKAGES.items()
        for module in (path.relative_to(root / sources) for path in (root / sources).rglob("*.py"))
    }
    for module, cover in covered.items():
        if module not in tests:
            yield f"tests/README.md must name modules that exist, found {module}; remove its line"
        elif (root / tests[module]).is_file():
            yield f"tests/README.md must not list {module}, which has {tests[module]}; remove its line"
        if not (root / cover).is_file():
            yield f"tests/README.md must name test files that exist, found {cover}; correct the line of {module}"


def misplaced(root: Path) -> Iterator[str]:
    """List helpers outside tests/support, tests inside it, and test files that import each other."""
    for path in sorted((root / "tests").rglob("*.py")):
        name = path.relative_to(root).as_posix()
        is_test = path.name.startswith("test_")
        if name.startswith("tests/support/"):
            if is_test:
                yield f"{name} must be outside tests/support, which holds only helpers; move it to its module's place"
            continue
        if not is_test and path.name not in {"conftest.py", "__init__.py"}:
            yield f"{name} is neither a test file nor a conftest.py; move it to tests/support"
        for imported in _imports(ast.parse(path.read_text())):
            if re.match(r"tests\.(?!support\b)", imported):
                yield f"{name} must import helpers only from tests.support, found {imported}; move the shared code there"


def _imports(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def long_names(root: Path) -> Iterator[str]:
    """List test functions whose name is longer than 80 characters."""
    for path in sorted((root / "tests").rglob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if (
                isinstance(node, _FUNCTION)
                and len(node.name) > LONGEST_NAME
                and node.name.startswith("test_")
            ):
                yield (
                    f"{path.relative_to(root)}:{node.lineno}: a test's name must have at most {LONGEST_NAME} "
                    f"characters, found {len(node.name)}: {node.name}; shorten it"
                )


def faults(root: Path) -> list[str]:
    """List all faults of the repository at `root`."""
    covered = dict(ROW.findall((root / "tests" / "README.md").read_text()))
    return [*missing_tests(root, covered), *stale_lines(root, covered), *misplaced(root), *long_names(root)]


def main() -> int:
    """Print every fault; return 1 if there is one."""
    found = faults(ROOT)
    for fault in found:
        print(fault, file=sys.stderr)
    if found:
        print(f"{len(found)} places must change before tests and modules mirror each other", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
