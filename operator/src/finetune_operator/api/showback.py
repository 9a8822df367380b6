"""Labels of a FineTuneJob that name who pays for it, such as a team or a cost center.

The administrator allows their keys. Allowed labels are copied to the job's children and to its metrics. No other label of
the job is: tools such as Argo CD find their own objects by labels.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Annotated

from pydantic import AfterValidator, Field

from finetune_operator.api.names import MAXIMUM_PREFIX, QUALIFIED_NAME
from finetune_operator.api.stages import GROUP

MAXIMUM_LABELS = 8
FOREIGN_PREFIXES = (
    f"{GROUP}/",
    "batch.kubernetes.io/",
    "kubectl.kubernetes.io/",
    "kueue.x-k8s.io/",
    "argocd.argoproj.io/",
    "helm.sh/",
    "helm.toolkit.fluxcd.io/",
    "kustomize.toolkit.fluxcd.io/",
)
"""Keys by which the operator, Kubernetes, a queue or a deployment tool finds its own objects."""
FOREIGN_LABELS = frozenset(
    {
        *(f"app.kubernetes.io/{name}" for name in ("name", "component", "managed-by", "instance")),
        "job-name",
        "controller-uid",
        "pod-template-hash",
    }
)
_CAPITAL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
_OTHER = re.compile(r"[^a-zA-Z0-9_]")


def _check_key(key: str) -> str:
    if key.find("/") > MAXIMUM_PREFIX:
        raise ValueError(f"must have a prefix of at most {MAXIMUM_PREFIX} characters")
    if key.startswith(FOREIGN_PREFIXES) or key in FOREIGN_LABELS:
        raise ValueError(
            f"must not be a key by which other tools find their objects, found {key}; use one of your own, such as team"
        )
    return key


ShowbackKey = Annotated[
    str, Field(min_length=1, max_length=317, pattern=QUALIFIED_NAME), AfterValidator(_check_key)
]
"""The key of a label that children and metrics may carry."""


def check_distinct(keys: Collection[str]) -> None:
    """Raise ValueError if two keys are equal, or give the same label of a metric."""
    names: dict[str, str] = {}
    for key in keys:
        other = names.setdefault(metric_label(key), key)
        if other is not key or list(keys).count(key) > 1:
            raise ValueError(f"cost.labels must give different labels of a metric, found {other} and {key}")


def metric_label(key: str) -> str:
    """The name of a label in metrics, as kube-state-metrics writes it: `costCenter` is `label_cost_center`."""
    return "label_" + _OTHER.sub("_", _CAPITAL.sub("_", key)).lower()


def showback_labels(labels: Mapping[str, str], allowed: Collection[str]) -> dict[str, str]:
    """Those of a job's labels that are allowed."""
    return {key: labels[key] for key in allowed if key in labels}
