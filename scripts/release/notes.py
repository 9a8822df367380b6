"""Print the notes of a release: its section of CHANGELOG.md, with links that work outside of the repository.

    python -m scripts.release.notes v1.2.3

A tag must fit the version of everything that names one, and the changelog must have a section for it.
"""

from __future__ import annotations

import argparse
import re
import sys
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]
HOME = "https://github.com/finetune-dev/finetune"
LONGEST = 125_000
"""Characters that GitHub takes as the text of a release."""
KINDS = ("added", "changed", "deprecated", "removed", "fixed", "security")
"""Headings of Keep a Changelog in lower case, which are also the kinds of change of Artifact Hub."""


class ReleaseError(ValueError):
    """Something that keeps the release from being made; the text says what to do."""


def versions(root: Path) -> dict[str, str]:
    """Return every place below `root` that names the version of the project, with that version."""
    project = tomllib.loads((root / "pyproject.toml").read_text("utf-8"))
    chart = yaml.safe_load((root / "helm/finetune-operator/Chart.yaml").read_text("utf-8"))
    found = {
        "pyproject.toml": str(project["project"]["version"]),
        "Chart.yaml version": str(chart["version"]),
        "Chart.yaml appVersion": str(chart["appVersion"]),
    }
    for dockerfile in ("operator/Dockerfile", "trainer_image/Dockerfile"):
        (version,) = re.findall(r"^ARG VERSION=(\S+)$", (root / dockerfile).read_text("utf-8"), re.MULTILINE)
        found[dockerfile] = version
    return found


def version_of(tag: str, named: Mapping[str, str]) -> str:
    """Return the version of a tag, `v` and a semantic version. Raise ReleaseError if a place names another one."""
    match = re.fullmatch(r"v(\d+\.\d+\.\d+(?:-[0-9A-Za-z.-]+)?)", tag)
    if match is None:
        raise ReleaseError(
            f"a release's tag must be v and a semantic version, found {tag!r}; make another tag"
        )
    others = [f"{place} has {version}" for place, version in named.items() if version != match[1]]
    if others:
        raise ReleaseError(f"everything must have the version {match[1]} of the tag, but {', '.join(others)}")
    return match[1]


def section(changelog: str, version: str) -> str:
    """Return the text below the heading of a version, `## 1.2.3 - 2026-12-31` with the date or without."""
    heading = re.compile(rf"^## \[?{re.escape(version)}\]?(?: - \d{{4}}-\d\d-\d\d)?$", re.MULTILINE)
    match = heading.search(changelog)
    text = (
        re.split(r"^## ", changelog[match.end() :], maxsplit=1, flags=re.MULTILINE)[0].strip()
        if match
        else ""
    )
    if not text:
        raise ReleaseError(
            f"CHANGELOG.md must have a section `## {version} - DATE` with text, found none; rename `Unreleased`"
        )
    return text


def with_absolute_links(text: str, tag: str) -> str:
    """Return Markdown whose relative links lead to the files of a tag."""
    return re.sub(r"\]\((?![a-z]+:|#)([^)]+)\)", rf"]({HOME}/blob/{tag}/\1)", text)


def notes(changelog: str, tag: str, version: str) -> str:
    """Return the text of a release. Raise ReleaseError if GitHub would refuse it."""
    text = with_absolute_links(section(changelog, version), tag)
    if len(text) > LONGEST:
        raise ReleaseError(
            f"the notes must have at most {LONGEST} characters, found {len(text)}; shorten them"
        )
    return text


def changes(text: str) -> Iterator[dict[str, str]]:
    """Yield the changes of a section as Artifact Hub lists them: a kind, and the first sentence without markup."""
    kind = ""
    for line in text.splitlines():
        if line.startswith("### "):
            kind = line.removeprefix("### ").strip().lower()
        elif line.startswith("- ") and kind in KINDS:
            plain = re.sub(r" ?\(\[[^]]*\]\([^)]*\)(?:, \[[^]]*\]\([^)]*\))*\)", "", line.removeprefix("- "))
            plain = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", plain)
            yield {"kind": kind, "description": plain.replace("`", "")}


def main() -> int:
    """Print the notes; return 1 with the reason if the release cannot be made."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("tag", help="tag of the release, for example v1.2.3")
    tag = parser.parse_args().tag
    try:
        version = version_of(tag, versions(ROOT))
        print(notes((ROOT / "CHANGELOG.md").read_text("utf-8"), tag, version))
    except ReleaseError as error:
        print(f"[release] error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
