"""The Kustomize base beside the chart, as the real kubectl builds it."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
from pathlib import Path
from types import ModuleType
from typing import Any

import yaml
from finetune_operator.settings import parse_settings

from tests.support.chart import CHART, NAMESPACE, helm, only, render
from tests.support.repository import ROOT

FOLDER = ROOT / "gitops/kustomize"


def generator() -> ModuleType:
    """The script that writes the base."""
    specification = importlib.util.spec_from_file_location(
        "gitops_generate", ROOT / "scripts/gitops/generate.py"
    )
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def build(folder: Path) -> list[dict[str, Any]]:
    own = ROOT / ".cache/bin/kubectl"
    kubectl = str(own) if own.exists() else shutil.which("kubectl")
    assert kubectl is not None, "kubectl must be in .cache/bin or on PATH; run `make tools`"
    done = subprocess.run([kubectl, "kustomize", str(folder)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [each for each in yaml.safe_load_all(done.stdout) if each]


def key(body: dict[str, Any]) -> tuple[str, str]:
    name = body["metadata"]["name"]
    return body["kind"], "settings" if "settings" in name else name


def test_the_base_is_what_the_chart_renders_by_default() -> None:
    module = generator()
    for name, text in module.kustomize_base(module.rendered()).items():
        assert (FOLDER / "base" / name).read_text() == text, f"{name}: run scripts/gitops/generate.py"


def test_the_base_installs_the_objects_of_the_chart_and_a_namespace() -> None:
    built = {key(body): body for body in build(FOLDER / "base")}
    charted = {key(body): body for body in charted_objects()}
    assert built.keys() - charted.keys() == {("Namespace", "finetune-system")}
    assert charted.keys() <= built.keys()
    for name, wanted in charted.items():
        parts = ("spec", "rules", "roleRef", "subjects") if name[0] != "Deployment" else ()
        assert [built[name].get(part) for part in parts] == [wanted.get(part) for part in parts], name
        assert not marks_of_helm(built[name])


def charted_objects() -> list[dict[str, Any]]:
    """The chart as a release of the base's name, with the CRD."""
    done = helm("template", "finetune-operator", str(CHART), "--namespace", NAMESPACE, "--skip-tests")
    assert done.returncode == 0, done.stderr
    return [each for each in yaml.safe_load_all(done.stdout) if each]


def marks_of_helm(body: dict[str, Any]) -> set[str]:
    """The labels and annotations of helm on an object and on its pods."""
    return {line for line in json.dumps(body).split('"') if line.startswith(("helm.sh/", "meta.helm.sh/"))}


def test_the_deployment_runs_with_the_generated_settings() -> None:
    objects = build(FOLDER / "base")
    deployment, settings = only(objects, "Deployment"), only(objects, "ConfigMap")
    volumes = deployment["spec"]["template"]["spec"]["volumes"]
    assert {"name": "settings", "configMap": {"name": settings["metadata"]["name"]}} in volumes
    assert parse_settings(settings["data"]["settings.json"]) == parse_settings(
        only(render(), "ConfigMap")["data"]["settings.json"]
    )


def test_an_overlay_changes_images_and_settings_and_restarts_the_pods() -> None:
    base, overlay = build(FOLDER / "base"), build(FOLDER / "overlays/example")
    settings = parse_settings(only(overlay, "ConfigMap")["data"]["settings.json"])
    container = only(overlay, "Deployment")["spec"]["template"]["spec"]["containers"][0]
    assert settings.trainer.image == "registry.example.com/finetune/trainer:0.1.0"
    assert [profile.name for profile in settings.gpu_profiles] == ["a100"]
    assert container["image"] == "registry.example.com/finetune/operator:0.1.0"
    assert container["resources"]["limits"]["memory"] == "1Gi"
    names = {only(objects, "ConfigMap")["metadata"]["name"] for objects in (base, overlay)}
    assert len(names) == 2
