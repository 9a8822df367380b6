"""The check of links and code places in documents finds faults."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts.docs import check_links
from scripts.docs.check_links import link_fault, orphans, place_fault
from tests.support.repository import ROOT


@pytest.mark.parametrize(
    ("path", "name", "fault"),
    [
        ("sizing/ladder.py", "rungs", None),
        ("operator/src/finetune_operator/sizing/ladder.py", "Rung.fits", None),
        ("sizing/gpus/", "", None),
        ("test_references.py", "", None),
        ("application/json", "", None),
        ("sizing/ladder.py", "nothing", "must define nothing"),
        ("sizing/nothing.py", "", "sizing/nothing.py"),
        ("tests/nothing/", "", "tests/nothing/"),
        ("nothing.py", "", "nothing.py"),
    ],
)
def test_a_code_place_in_a_document_must_exist(path: str, name: str, fault: str | None) -> None:
    found = place_fault(ROOT / "README.md", path, name)
    assert (found is None) is (fault is None)
    assert (fault or "") in (found or "")


@pytest.mark.parametrize(
    ("target", "sound"),
    [
        ("docs/README.md", True),
        ("README.md#install", True),
        ("#install", True),
        ("https://example.com/nothing", True),
        ("docs/nothing.md", False),
        ("#nothing", False),
    ],
)
def test_a_link_in_a_document_must_lead_to_a_file_and_a_heading(target: str, *, sound: bool) -> None:
    assert (link_fault(ROOT / "README.md", target) is None) is sound


def test_an_index_must_link_each_page_of_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check_links, "ROOT", tmp_path)
    index = tmp_path / "README.md"
    index.write_text("[one](one.md#part)")
    for name in ("one.md", "two.md"):
        (tmp_path / name).touch()
    assert orphans(index) == ["README.md must link two.md; add a line"]
