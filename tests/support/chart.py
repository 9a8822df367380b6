"""The chart as the real helm renders it."""

from __future__ import annotations

import shutil
import subprocess
from typing import Any

import yaml

from tests.support.repository import ROOT

CHART = ROOT / "helm" / "finetune-operator"
NAMESPACE = "finetune-system"
RELEASE = "ft"
VALUES_FILES = sorted(CHART.glob("ci/*-values.yaml"))

Manifest = dict[str, Any]


def helm(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the project's helm, or the one on PATH where the set-up has not run."""
    own = ROOT / ".cache" / "bin" / "helm"
    program = str(own) if own.exists() else shutil.which("helm")
    if program is None:
        raise FileNotFoundError(f"helm must be at {own} or on PATH, found neither; run `make tools`")
    return subprocess.run([program, *arguments], capture_output=True, text=True, check=False)


def render(*arguments: str) -> list[Manifest]:
    """Return the objects of the chart under the given `helm template` arguments."""
    done = helm("template", RELEASE, str(CHART), "--namespace", NAMESPACE, *arguments)
    if done.returncode != 0:
        raise ValueError(f"the chart must render, found: {done.stderr}")
    return [document for document in yaml.safe_load_all(done.stdout) if document]


def only(objects: list[Manifest], kind: str, suffix: str = "") -> Manifest:
    """Return the one object of this kind whose name ends with `suffix`."""
    found = [item for item in objects if item["kind"] == kind and item["metadata"]["name"].endswith(suffix)]
    assert len(found) == 1, f"one {kind} *{suffix}, found {[item['metadata']['name'] for item in found]}"
    return found[0]


def permissions(objects: list[Manifest]) -> set[tuple[str, str, str]]:
    """Return API group, resource and verb of all that the bound roles of a rendered chart grant."""
    bindings = [each for each in objects if each["kind"] in {"RoleBinding", "ClusterRoleBinding"}]
    roles = {(each["roleRef"]["kind"], each["roleRef"]["name"]) for each in bindings}
    return {
        (group, resource, verb)
        for each in objects
        if (each["kind"], each["metadata"]["name"]) in roles
        for rule in each["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }
