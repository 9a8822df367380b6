"""Check that every relative link, anchor and code place in the hand-written documents exists.

A code place is inline code such as `path/file.py`, `path/folder/` or `path/file.py:name`. Its path begins at the
repository's root or inside one of the three packages. `name` is a function, a class, `Class.method` or a constant.
An index must link every page of its folder.
"""

from __future__ import annotations

import ast
import re
import sys
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = tuple(
    ROOT / path
    for path in (
        "operator/src/finetune_operator",
        "trainer_image/src/finetune_trainer",
        "cli/src/finetune_cli",
        "cli/src/finetune_client",
    )
)
LINK = re.compile(r"\]\(([^)\s]+)\)")
CODE = re.compile(r"`([\w.-][\w./-]*/[\w./-]*|[\w./-]+\.py)(?::([A-Za-z_][\w.]*))?`")
FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`[^`]*`")


def documents(root: Path) -> list[Path]:
    """Return the Markdown files that people write and read."""
    top = [
        root / name
        for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md", "AGENTS.md", "llms.txt")
    ]
    rooms = [*root.glob("docs/**/*.md"), *root.glob("contract/*.md"), *root.glob("benchmarks/*.md")]
    return sorted(path for path in [*top, *rooms, *root.glob("tests/*.md")] if path.is_file())


@cache
def names(module: Path) -> frozenset[str]:
    """Return the names that a Python file defines: functions, classes, `Class.method` and constants."""
    found: set[str] = set()
    for node in ast.parse(module.read_text(encoding="utf-8")).body:
        found |= _names(node)
    return frozenset(found)


def _names(node: ast.stmt) -> set[str]:
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        return {node.name}
    if isinstance(node, ast.ClassDef):
        return {node.name, *(f"{node.name}.{name}" for inner in node.body for name in _names(inner))}
    if isinstance(node, ast.AnnAssign):
        return {ast.unparse(node.target)}
    if isinstance(node, ast.Assign):
        return {ast.unparse(target) for target in node.targets}
    return set()


@cache
def file_names() -> frozenset[str]:
    """Return the names of all Python files of the repository."""
    rooms = (*PACKAGES, *(ROOT / name for name in ("tests", "scripts", "tools", "benchmarks")))
    return frozenset(path.name for room in rooms for path in room.rglob("*.py"))


def anchors(text: str) -> set[str]:
    """Return the anchors that GitHub gives to the headings of a Markdown text."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def link_fault(document: Path, target: str) -> str | None:
    """Return the fault of a link in `document`, or None if it leads somewhere. Addresses of the web are not visited."""
    if re.match(r"[a-z]+:", target):
        return None
    path, _, anchor = target.partition("#")
    file = (document.parent / path).resolve() if path else document
    if not file.exists():
        return f"a link must lead to a file, found {target}; correct the path"
    if anchor and file.suffix == ".md" and anchor not in anchors(file.read_text(encoding="utf-8")):
        return f"a link must lead to a heading, found {target}; correct the anchor"
    return None


def is_place(path: str) -> bool:
    """Return True if inline code must name a place: a Python file, or a path in a folder of the repository."""
    first = path.split("/", 1)[0]
    return path.endswith(".py") or ("/" in path.strip("/") and first[0] != "." and (ROOT / first).is_dir())


def place_fault(document: Path, path: str, name: str) -> str | None:
    """Return the fault of a code place, or None if it exists. Other inline code with a slash is not a place."""
    if "/" not in path:
        return None if path in file_names() else f"a file must exist, found `{path}`; correct the name"
    bases = (ROOT, document.parent, *PACKAGES)
    found = next((base / path for base in bases if (base / path).exists()), None)
    if found is None:
        return f"a code place must exist, found `{path}`; correct the path" if is_place(path) else None
    if name and found.suffix == ".py" and name not in names(found):
        return f"{path} must define {name}; correct the name"
    return None


def faults(document: Path) -> list[str]:
    """Return every fault of one document, with its line."""
    text = document.read_text(encoding="utf-8")
    # A fence keeps its line breaks, so that line numbers stay right.
    prose = FENCE.sub(lambda fence: "\n" * fence.group().count("\n"), text)
    found = []
    for number, line in enumerate(prose.splitlines(), start=1):
        checks = [link_fault(document, target) for target in LINK.findall(INLINE.sub("``", line))]
        checks += [place_fault(document, path, name) for path, name in CODE.findall(line)]
        found += [f"{document.relative_to(ROOT)}:{number}: {fault}" for fault in checks if fault]
    return found


def orphans(index: Path) -> list[str]:
    """Return a fault for each Markdown file of a folder that the folder's index does not link."""
    linked = {target.partition("#")[0] for target in LINK.findall(index.read_text(encoding="utf-8"))}
    missing = {path.name for path in index.parent.glob("*.md")} - linked - {index.name}
    return [f"{index.relative_to(ROOT)} must link {name}; add a line" for name in sorted(missing)]


def main() -> int:
    """Print every fault; return 1 if there is one."""
    found = [fault for document in documents(ROOT) for fault in faults(document)]
    found += [fault for folder in ("docs", "docs/adr") for fault in orphans(ROOT / folder / "README.md")]
    print("\n".join(found), file=sys.stderr, end="\n" if found else "")
    return 1 if found else 0


if __name__ == "__main__":
    raise SystemExit(main())
