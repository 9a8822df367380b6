"""Each image, and each installation by pip, has the packages that the code in it imports."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from importlib.metadata import packages_distributions

import pytest

from tests.support.repository import ROOT

SOURCES = {
    "operator": ("operator/src/finetune_operator",),
    "trainer": ("trainer_image/src/finetune_trainer",),
    # The command line imports parts of the operator. import-linter says which.
    "cli": (
        "cli/src/finetune_cli",
        "operator/src/finetune_operator/api",
        "operator/src/finetune_operator/sizing",
    ),
    "client": ("cli/src/finetune_client",),
}
OWN = {"finetune_operator", "finetune_trainer", "finetune_cli", "finetune_client"}
# torch requires it on Linux, and the tests' torch has no GPU.
OPTIONAL = {"trainer": {"triton"}}


def imports(node: ast.AST) -> Iterator[str]:
    """The top-level packages that a module imports anywhere, but for type checks."""
    if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
        return
    if isinstance(node, ast.Import):
        yield from (name.name.partition(".")[0] for name in node.names)
    if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module is not None:
        yield node.module.partition(".")[0]
    for child in ast.iter_child_nodes(node):
        yield from imports(child)


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


@pytest.mark.parametrize("lock", SOURCES)
def test_every_imported_package_is_locked(lock: str) -> None:
    locked = {
        canonical(line.partition("==")[0].partition("[")[0])
        for line in (ROOT / "requirements" / f"{lock}.txt").read_text("utf-8").splitlines()
        if "==" in line and not line.startswith((" ", "#"))
    }
    distributions = packages_distributions()
    files = [file for source in SOURCES[lock] for file in (ROOT / source).rglob("*.py")]
    assert files
    used = {name for file in files for name in imports(ast.parse(file.read_text("utf-8")))}
    foreign = used - set(sys.stdlib_module_names) - OWN - OPTIONAL.get(lock, set())
    assert foreign
    missing = {
        name: distributions.get(name, [])
        for name in foreign
        if not {canonical(item) for item in distributions.get(name, [])} & locked
    }
    assert missing == {}
