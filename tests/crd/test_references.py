"""The generated documents are up to date, and the check of links finds faults."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from tests.support.repository import ROOT


def load_script(name: str) -> ModuleType:
    """Load a script of scripts/docs by its path, because scripts are no package."""
    specification = importlib.util.spec_from_file_location(name, ROOT / f"scripts/docs/{name}.py")
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def generator() -> ModuleType:
    return load_script("generate")


@pytest.fixture(scope="module")
def links() -> ModuleType:
    return load_script("check_links")


@pytest.mark.parametrize(
    "name", ["docs/reference/api.md", "docs/reference/chart-values.md", "docs/failure-modes.md"]
)
def test_document_is_up_to_date(generator: ModuleType, name: str) -> None:
    assert (ROOT / name).read_text() == generator.documents(ROOT)[ROOT / name]


def test_every_reason_has_a_heading_or_a_row() -> None:
    reasons = json.loads((ROOT / "contract/reasons.json").read_text())
    text = (ROOT / "docs/failure-modes.md").read_text()
    assert set(re.findall(r"^### (\w+)$", text, re.MULTILINE)) == set(reasons["job"])
    assert set(re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE)) == set(reasons["row"])


def test_every_chart_value_is_documented(generator: ModuleType) -> None:
    """Members of Kubernetes' own objects are an exception, because their parent documents them."""
    text = (ROOT / "helm/finetune-operator/values.yaml").read_text()
    parents = ("resources", "trainer.resources.prepare", "trainer.resources.train", "trainer.resources.merge")

    def leaves(values: dict[str, object], prefix: str = "") -> set[str]:
        found = set()
        for key, value in values.items():
            path = f"{prefix}{key}"
            inner = isinstance(value, dict) and value and path not in parents
            found |= leaves(value, f"{path}.") if inner and isinstance(value, dict) else {path}
        return found

    documented = generator.value_comments(text)
    assert leaves(yaml.safe_load(text)) <= documented.keys()


def test_a_changed_source_changes_the_document(generator: ModuleType) -> None:
    """This shows that the comparison above can fail."""
    reasons = json.loads((ROOT / "contract/reasons.json").read_text())
    before = generator.failure_modes(reasons)
    reasons["job"]["InternalError"]["remedy"] = "Another one."
    assert generator.failure_modes(reasons) != before


def test_a_class_without_an_explanation_is_rejected(generator: ModuleType) -> None:
    reasons = {
        "job": {"New": {"source": "operator", "class": "Odd", "meaning": "M.", "remedy": "R."}},
        "row": {},
    }
    with pytest.raises(ValueError, match="Odd"):
        generator.failure_modes(reasons)


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
def test_a_code_place_in_a_document_must_exist(
    links: ModuleType, path: str, name: str, fault: str | None
) -> None:
    found = links.place_fault(ROOT / "README.md", path, name)
    assert found is None if fault is None else fault in found


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
def test_a_link_in_a_document_must_lead_to_a_file_and_a_heading(
    links: ModuleType, target: str, *, sound: bool
) -> None:
    assert (links.link_fault(ROOT / "README.md", target) is None) is sound


def test_an_index_must_link_each_page_of_its_folder(
    links: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(links, "ROOT", tmp_path)
    index = tmp_path / "README.md"
    index.write_text("[one](one.md#part)")
    for name in ("one.md", "two.md"):
        (tmp_path / name).touch()
    assert links.orphans(index) == ["README.md must link two.md; add a line"]
