"""The manifests that serve artifacts are valid Kubernetes, and name the folders that MERGE publishes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from finetune_trainer.workspace.destination import FOLDERS

from tests.support.repository import ROOT

MANIFESTS = sorted((ROOT / "examples/serving").glob("*.yaml"))


def documents(path: Path) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(path.read_text()))


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.stem)
def test_a_manifest_is_valid_and_its_parts_fit_together(path: Path) -> None:
    deployment, service = documents(path)
    for each in (deployment, service):
        kubernetes_validate.validate(each, "1.36", strict=True)
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert service["spec"]["selector"].items() <= labels.items()
    assert deployment["spec"]["selector"]["matchLabels"].items() <= labels.items()
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    assert {volume["name"] for volume in deployment["spec"]["template"]["spec"]["volumes"]} == {
        mount["name"] for mount in container["volumeMounts"]
    }
    folders = set(re.findall(r"/models/([a-z-]+)", " ".join(container["args"])))
    assert folders
    assert folders <= set(FOLDERS.values())


def test_both_artifacts_have_a_manifest() -> None:
    assert [path.stem for path in MANIFESTS] == ["adapter", "merged"]
