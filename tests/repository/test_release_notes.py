"""The notes of a release, and the places that name its version."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts.release import notes
from scripts.release.notes import ReleaseError
from tests.support.repository import ROOT

CHANGELOG = """# Changelog

## Unreleased

### Added
- Something newer.

## 1.2.3 - 2026-12-31

### Added
- `finetune cost` names its source ([docs/cost.md](docs/cost.md)).
  More about it.

### Security
- An [address](https://example.com/a) and [a record](a.md) matter ([ADR 1](docs/adr/0001.md), [ADR 2](docs/adr/0002.md)).

## 1.2.2

### Fixed
- Something older.
"""


def test_every_place_names_the_same_version() -> None:
    named = notes.versions(ROOT)
    assert len(named) == 5
    assert notes.version_of(f"v{named['pyproject.toml']}", named) == named["pyproject.toml"]


def test_a_tag_of_another_version_is_refused_with_the_places() -> None:
    named = {"pyproject.toml": "1.2.3", "Chart.yaml version": "1.2.2"}
    with pytest.raises(ReleaseError, match=r"Chart\.yaml version has 1\.2\.2"):
        notes.version_of("v1.2.3", named)


@pytest.mark.parametrize("tag", ["1.2.3", "v1.2", "v1.2.3.4", "v1.2.3\n", "latest"])
def test_a_tag_must_be_v_and_a_semantic_version(tag: str) -> None:
    with pytest.raises(ReleaseError, match="semantic version"):
        notes.version_of(tag, {})


def test_a_pre_release_is_a_version() -> None:
    assert notes.version_of("v1.0.0-rc.1", {"pyproject.toml": "1.0.0-rc.1"}) == "1.0.0-rc.1"


@pytest.mark.parametrize("heading", ["## 1.2.3 - 2026-12-31", "## [1.2.3] - 2026-12-31", "## 1.2.3"])
def test_the_notes_are_the_section_of_the_version_alone(heading: str) -> None:
    text = notes.section(CHANGELOG.replace("## 1.2.3 - 2026-12-31", heading), "1.2.3")
    assert text.startswith("### Added\n- `finetune cost`")
    assert "newer" not in text
    assert "older" not in text


@pytest.mark.parametrize("version", ["1.2", "1.2.4", "11.2.3", "1.2.3-rc.1"])
def test_a_version_without_a_section_is_refused(version: str) -> None:
    with pytest.raises(ReleaseError, match="rename `Unreleased`"):
        notes.section(CHANGELOG, version)


def test_an_empty_section_is_refused() -> None:
    with pytest.raises(ReleaseError, match="section"):
        notes.section("# Changelog\n\n## 1.0.0\n\n## 0.9.0\n- x\n", "1.0.0")


def test_relative_links_lead_to_the_files_of_the_tag() -> None:
    text = notes.notes(CHANGELOG, "v1.2.3", "1.2.3")
    assert f"[docs/cost.md]({notes.HOME}/blob/v1.2.3/docs/cost.md)" in text
    assert "[address](https://example.com/a)" in text


def test_notes_that_are_too_long_for_a_release_are_refused() -> None:
    with pytest.raises(ReleaseError, match="at most 125000 characters"):
        notes.notes(f"## 1.0.0\n{'word ' * 30_000}\n", "v1.0.0", "1.0.0")


def test_changes_for_artifact_hub_are_plain_sentences_with_their_kind() -> None:
    assert list(notes.changes(notes.section(CHANGELOG, "1.2.3"))) == [
        {"kind": "added", "description": "finetune cost names its source."},
        {"kind": "security", "description": "An address and a record matter."},
    ]


def test_the_unreleased_changes_could_be_released_today() -> None:
    """Renamed to a version, the section gives notes that GitHub takes, and all links lead to files that exist."""
    changelog = (ROOT / "CHANGELOG.md").read_text("utf-8").replace("## Unreleased", "## 99.0.0 - 2026-12-31")
    text = notes.notes(changelog, "v99.0.0", "99.0.0")
    prefix = f"]({notes.HOME}/blob/v99.0.0/"
    paths = [part.partition(")")[0].partition("#")[0] for part in text.split(prefix)[1:]]
    assert paths
    assert [path for path in paths if not (ROOT / Path(path)).exists()] == []
    assert len(list(notes.changes(text))) > 10
