"""The generated documents are up to date."""

from __future__ import annotations

import importlib.util
import json
import re
from types import ModuleType

import pytest
import yaml

from tests.support.repository import ROOT


@pytest.fixture(scope="module")
def generator() -> ModuleType:
    """Load scripts/docs/generate.py by path, like a script."""
    specification = importlib.util.spec_from_file_location("generate", ROOT / "scripts/docs/generate.py")
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    "name",
    [
        "docs/reference/api.md",
        "docs/reference/chart-values.md",
        "docs/reference/cli.md",
        "docs/failure-modes.md",
        "cli/src/finetune_client/types.py",
    ],
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
    stages = ("prepare", "train", "merge")
    parents = (
        "resources",
        *(f"trainer.resources.{stage}" for stage in stages),
        *(f"trainer.podDefaults.{stage}.nodeSelector" for stage in stages),
    )

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
    """The comparison above can fail."""
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
