"""Kueue, built from its module (scripts/tools/build_kueue.sh), in a dev cluster: installation and removal.

Its own manifests are changed as little as a cluster without a registry and a front proxy demands.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import yaml

from devcluster.errors import DevClusterError
from devcluster.images import NONROOT, PRODUCT_ROOT
from devcluster.kubectl import Kubectl
from devcluster.layout import BIN

NAMESPACE = "kueue-system"
API = "kueue.x-k8s.io/v1beta2"
_MANIFESTS = BIN / "kueue.yaml"
_BINARY = BIN / "kueue"
_CONFIG_FILE = "controller_manager_config.yaml"
_DEPLOYMENT = ("deployment", "--namespace", NAMESPACE)
_READY_SECONDS = 60.0
_MANAGED_GROUPS = {"kueue.x-k8s.io", "batch"}
"""Groups whose webhooks stay. The others would be asked about the pods of all tests, which no queue manages."""


def adapted(documents: Iterable[dict[str, Any]], image: str) -> list[dict[str, Any]]:
    """Return Kueue's manifests for a dev cluster: they run the binary of this checkout in the thin image `image`.

    Kueue manages batch/v1 Jobs only. Its aggregated API is off, because it needs a front proxy.
    """
    found = []
    for document in documents:
        match document["kind"]:
            case "APIService":
                continue
            case "Deployment":
                _run_binary(document["spec"]["template"]["spec"], image)
            case "ConfigMap":
                config = yaml.safe_load(document["data"][_CONFIG_FILE])
                config["integrations"] = {"frameworks": ["batch/job"]}
                config["featureGates"] = {"VisibilityOnDemand": False}
                # A single replica need not wait for the Lease of the one before.
                config["leaderElection"] = {"leaderElect": False}
                document["data"][_CONFIG_FILE] = yaml.safe_dump(config)
            case "MutatingWebhookConfiguration" | "ValidatingWebhookConfiguration":
                document["webhooks"] = [hook for hook in document["webhooks"] if _is_managed(hook)]
        found.append(document)
    return found


def _run_binary(pod: dict[str, Any], image: str) -> None:
    (container,) = pod["containers"]
    pod["securityContext"] |= {"runAsUser": NONROOT, "runAsGroup": NONROOT, "fsGroup": NONROOT}
    container |= {
        "image": image,
        "imagePullPolicy": "IfNotPresent",
        "command": [f"{PRODUCT_ROOT}/.cache/bin/{_BINARY.name}"],
        "resources": {"requests": {"cpu": "50m", "memory": "64Mi"}},
    }
    container["readinessProbe"] |= {"initialDelaySeconds": 1, "periodSeconds": 1}


def _is_managed(hook: dict[str, Any]) -> bool:
    return any(set(rule["apiGroups"]) & _MANAGED_GROUPS for rule in hook["rules"])


@contextmanager
def running(kubectl: Kubectl, image: str) -> Iterator[None]:
    """Run Kueue for the duration of a `with` block; `image` is any thin image of the cluster.

    The block must remove its queues and Jobs before it ends, because only Kueue ends their finalizers. Raises
    DevClusterError if Kueue is not built or does not become ready.
    """
    for path in (_BINARY, _MANIFESTS):
        if not path.is_file():
            raise DevClusterError(f"{path} must exist, found none; run scripts/tools/build_kueue.sh first")
    documents = adapted(yaml.load_all(_MANIFESTS.read_text(), Loader=yaml.CSafeLoader), image)
    text = "\n---\n".join(json.dumps(document) for document in documents)
    try:
        kubectl("apply", "--server-side", "--force-conflicts", "--filename=-", stdin=text)
        # The kubelet shows a changed Secret to a running pod after a minute, and to a new one at once. The old pod must be
        # gone: the API server would wait for answers on connections to it.
        _await("its certificate", lambda: _has_certificate(kubectl))
        kubectl("delete", "pods", "--all", "--namespace", NAMESPACE, "--wait=true")
        kubectl("rollout", "status", *_DEPLOYMENT, f"--timeout={_READY_SECONDS:.0f}s")
        _await("its webhooks", lambda: _webhooks_answer(kubectl))
        yield
    finally:
        # Webhooks without a server would refuse every Job.
        hooks = ("mutatingwebhookconfiguration", "validatingwebhookconfiguration")
        for kind in hooks:
            kubectl("delete", kind, "--selector=app.kubernetes.io/name=kueue", "--ignore-not-found")
        kubectl("delete", "--filename=-", "--ignore-not-found", "--wait=true", "--timeout=120s", stdin=text)


def _has_certificate(kubectl: Kubectl) -> bool:
    """True once Kueue has made the certificate of its webhooks."""
    secret = kubectl.json("get", "secret", "kueue-webhook-server-cert", "--namespace", NAMESPACE)
    return bool(secret.get("data"))


def _webhooks_answer(kubectl: Kubectl) -> bool:
    """True once the API server reaches Kueue's webhooks and trusts their certificate."""
    probe = {"apiVersion": API, "kind": "ResourceFlavor", "metadata": {"name": "probe"}}
    answer = kubectl.run("create", "--dry-run=server", "--filename=-", stdin=json.dumps(probe))
    return answer.returncode == 0


def _await(what: str, holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _READY_SECONDS
    while not holds():
        if time.monotonic() > deadline:
            raise DevClusterError(
                f"{what} must be ready within {_READY_SECONDS:.0f} s after the installation of Kueue, found none; "
                f"run kubectl logs --namespace {NAMESPACE} deployment/kueue-controller-manager"
            )
        time.sleep(0.3)
