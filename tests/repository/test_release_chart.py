"""The chart of a release: pinned images and the annotations that Artifact Hub reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from scripts.release import package_chart
from scripts.release.notes import ReleaseError
from tests.support.chart import CHART, helm, only

OPERATOR = f"registry.example.com:5000/team/operator@sha256:{'a' * 64}"
TRAINER = f"docker.io/finetune/trainer@sha256:{'b' * 64}"
IMAGES = {"operator": OPERATOR, "trainer": TRAINER}
CHANGELOG = "## 0.1.0 - 2026-12-31\n\n### Added\n- One thing.\n- Another: thing.\n\n### Security\n- A hole is closed.\n"


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return package_chart.package(tmp_path_factory.mktemp("chart"), IMAGES, CHANGELOG)


def chart_of(packed: Path) -> dict[str, Any]:
    described: dict[str, Any] = yaml.safe_load(helm("show", "chart", str(packed)).stdout)
    return described


def test_the_packed_chart_installs_the_images_by_digest(packed: Path) -> None:
    done = helm("template", "ft", str(packed))
    assert done.returncode == 0, done.stderr
    objects = [item for item in yaml.safe_load_all(done.stdout) if item]
    (container,) = only(objects, "Deployment")["spec"]["template"]["spec"]["containers"]
    assert container["image"] == OPERATOR
    assert TRAINER in only(objects, "ConfigMap", "-settings")["data"]["settings.json"]


def test_the_packed_chart_has_the_crd_and_no_values_of_the_tests(packed: Path) -> None:
    objects = [item for item in yaml.safe_load_all(helm("template", "ft", str(packed)).stdout) if item]
    assert only(objects, "CustomResourceDefinition")["metadata"]["name"] == "finetunejobs.finetune.dev"
    assert helm("lint", "--strict", str(packed)).returncode == 0


def test_only_the_places_of_the_images_differ_from_the_values_of_the_repository(packed: Path) -> None:
    before = (CHART / "values.yaml").read_text("utf-8").splitlines()
    after = helm("show", "values", str(packed)).stdout.strip("\n").splitlines()
    changed = [new.strip() for old, new in zip(before, after, strict=True) if old != new]
    assert changed == [
        "registry: registry.example.com:5000",
        "repository: team/operator",
        f"digest: sha256:{'a' * 64}",
        f"digest: sha256:{'b' * 64}",
    ]


def test_artifact_hub_reads_images_and_changes_from_the_annotations(packed: Path) -> None:
    annotations = chart_of(packed)["annotations"]
    assert yaml.safe_load(annotations["artifacthub.io/images"]) == [
        {"name": "operator", "image": OPERATOR},
        {"name": "trainer", "image": TRAINER},
    ]
    assert yaml.safe_load(annotations["artifacthub.io/changes"]) == [
        {"kind": "added", "description": "One thing."},
        {"kind": "added", "description": "Another: thing."},
        {"kind": "security", "description": "A hole is closed."},
    ]
    assert annotations["artifacthub.io/containsSecurityUpdates"] == "true"
    assert annotations["artifacthub.io/prerelease"] == "false"
    assert "artifacthub.io/crdsExamples" in annotations
    assert all(isinstance(value, str) for value in annotations.values())


def test_a_pre_release_says_so() -> None:
    found = package_chart.release_annotations(IMAGES, "1.0.0-rc.1", "## 1.0.0-rc.1\n### Fixed\n- A thing.\n")
    assert found["artifacthub.io/prerelease"] == "true"
    assert found["artifacthub.io/containsSecurityUpdates"] == "false"


@pytest.mark.parametrize(
    "reference",
    [
        "docker.io/finetune/trainer:0.1.0",
        f"finetune/trainer@sha256:{'b' * 64}",
        f"docker.io/finetune/trainer:0.1.0@sha256:{'b' * 64}",
        f"docker.io/finetune/trainer@sha256:{'b' * 63}",
    ],
)
def test_an_image_without_registry_or_whole_digest_is_refused(reference: str, tmp_path: Path) -> None:
    with pytest.raises(ReleaseError, match="REGISTRY/PATH@sha256"):
        package_chart.package(tmp_path, {**IMAGES, "trainer": reference}, CHANGELOG)
    assert list(tmp_path.iterdir()) == []


def test_a_path_that_the_values_lack_is_refused() -> None:
    text = 'image:\n  # digest of the image\n  digest: ""\nother:\n  digest: kept\n'
    assert package_chart.set_values(text, {"image.digest": "x"}).splitlines()[2:] == [
        "  digest: x",
        "other:",
        "  digest: kept",
    ]
    with pytest.raises(ReleaseError, match=r"trainer\.image\.digest"):
        package_chart.set_values(text, {"trainer.image.digest": "x"})
