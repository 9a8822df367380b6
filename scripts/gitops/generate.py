"""Write gitops/argocd/argocd-cm.yaml and gitops/kustomize/base.

The first holds the scripts of gitops/argocd/resource_customizations, whose layout is that of Argo CD's own scripts.
The second is what helm renders from the chart's default values. With --check, compare the first only: it needs no helm.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
GROUP, KIND = "finetune.dev", "FineTuneJob"
SCRIPTS = ROOT / "gitops/argocd/resource_customizations" / GROUP / KIND
TARGET = ROOT / "gitops/argocd/argocd-cm.yaml"
BASE = ROOT / "gitops/kustomize/base"
CHART = ROOT / "helm/finetune-operator"
NAME, NAMESPACE = "finetune-operator", "finetune-system"
OF_HELM = ("app.kubernetes.io/managed-by", "helm.sh/chart")
"""Labels that say that helm installed an object."""
HEAD = """\
# Settings for FineTuneJobs in Argo CD. `scripts/gitops/generate.py` writes this file from resource_customizations.
# Merge them into its ConfigMap:
#   kubectl patch configmap argocd-cm --namespace argocd --type merge --patch-file gitops/argocd/argocd-cm.yaml
apiVersion: v1
kind: ConfigMap
metadata:
  name: argocd-cm
  namespace: argocd
data:
"""
UPDATES = """\
  # Progress is written every 30 seconds. Without this setting, each write would refresh the application.
  resource.customizations.ignoreResourceUpdates.finetune.dev_FineTuneJob: |
    jsonPointers:
      - /status/progress
"""


def indented(text: str, spaces: int) -> str:
    """Return `text` with `spaces` before each line that is not empty."""
    return "".join(" " * spaces + line if line.strip() else line for line in text.splitlines(keepends=True))


def document(scripts: Path) -> str:
    """Return the ConfigMap with the scripts of this folder."""
    parts = [HEAD]
    parts.append(f"  resource.customizations.health.{GROUP}_{KIND}: |\n")
    parts.append(indented((scripts / "health.lua").read_text(encoding="utf-8"), 4))
    parts.append(f"  resource.customizations.actions.{GROUP}_{KIND}: |\n    discovery.lua: |\n")
    parts.append(indented((scripts / "actions/discovery.lua").read_text(encoding="utf-8"), 6))
    parts.append("    definitions:\n")
    for script in sorted(scripts.glob("actions/*/action.lua")):
        parts.append(f"      - name: {script.parent.name}\n        action.lua: |\n")
        parts.append(indented(script.read_text(encoding="utf-8"), 10))
    parts.append(UPDATES)
    return "".join(parts)


def rendered() -> list[dict[str, Any]]:
    """Return the chart's objects at its default values, without the CRD. Raises FileNotFoundError without helm."""
    own = ROOT / ".cache/bin/helm"
    helm = str(own) if own.exists() else shutil.which("helm")
    if helm is None:
        raise FileNotFoundError(f"helm must be at {own} or on PATH, found neither; run `make tools`")
    arguments = [NAME, str(CHART), "--namespace", NAMESPACE, "--skip-tests", "--set", "crds.enabled=false"]
    done = subprocess.run([helm, "template", *arguments], capture_output=True, text=True, check=True)
    return [each for each in yaml.safe_load_all(done.stdout) if each]


def without_helm(value: Any) -> Any:
    """Return `value` without helm's labels, at any depth."""
    if isinstance(value, dict):
        return {key: without_helm(item) for key, item in value.items() if key not in OF_HELM}
    return [without_helm(item) for item in value] if isinstance(value, list) else value


def kustomize_base(objects: list[dict[str, Any]]) -> dict[str, str]:
    """Return the files of the base by name: the settings, and all other objects.

    Kustomize generates the ConfigMap of the settings. Its name has a hash, so changed settings restart the pods.
    """
    settings, others = "", []
    for each in without_helm(objects):
        if each["kind"] == "ConfigMap" and "settings.json" in each["data"]:
            settings = json.dumps(json.loads(each["data"]["settings.json"]), indent=2, sort_keys=True) + "\n"
            continue
        if each["kind"] == "Deployment":
            del each["spec"]["template"]["metadata"]["annotations"]["checksum/settings"]
        others.append(each)
    head = "# `scripts/gitops/generate.py` writes this file from the chart's default values.\n"
    return {
        "settings.json": settings,
        "operator.yaml": head + yaml.safe_dump_all(others, sort_keys=False, width=110),
    }


def main() -> int:
    """Write or compare the files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare argocd-cm.yaml only")
    wanted = document(SCRIPTS)
    if not parser.parse_args().check:
        TARGET.write_text(wanted, encoding="utf-8")
        for name, text in kustomize_base(rendered()).items():
            (BASE / name).write_text(text, encoding="utf-8")
        return 0
    if TARGET.read_text(encoding="utf-8") != wanted:
        print(
            f"{TARGET.relative_to(ROOT)} must be generated again: run scripts/gitops/generate.py",
            file=sys.stderr,
        )
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
