"""Controllers with webhooks, built from their modules, in a dev cluster: installation and removal.

Their own manifests are changed as little as a cluster without a registry demands.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from devcluster.errors import DevClusterError
from devcluster.images import NONROOT, PRODUCT_ROOT
from devcluster.kubectl import Kubectl

_READY_SECONDS = 60.0
_CONFIG_FILE = "controller_manager_config.yaml"


@dataclass(frozen=True)
class WebhookController:
    """A controller with webhooks, as its own manifests install it."""

    name: str
    """As in `app.kubernetes.io/name`, and in the names of its namespace, its Deployment and its certificate."""
    binary: Path
    manifests: Path
    build: str
    """The script that makes both."""
    groups: frozenset[str]
    """Groups whose webhooks stay. The others would be asked about the pods of all tests."""
    config: dict[str, Any]
    """Members of its configuration to replace."""
    probe: dict[str, Any]
    """An object that its webhooks accept."""
    left_out: frozenset[str] = frozenset()
    """Kinds that a dev cluster cannot have."""

    @property
    def namespace(self) -> str:
        """The namespace of the controller."""
        return f"{self.name}-system"

    def adapted(self, documents: Iterable[dict[str, Any]], image: str) -> list[dict[str, Any]]:
        """Return its manifests for a dev cluster: they run the binary of this checkout in the thin image `image`."""
        found = []
        for document in documents:
            if document["kind"] in self.left_out:
                continue
            match document["kind"]:
                case "Deployment":
                    self._run_binary(document["spec"]["template"]["spec"], image)
                case "ConfigMap":
                    config = yaml.safe_load(document["data"][_CONFIG_FILE])
                    # A single replica need not wait for the Lease of the one before.
                    config |= {**self.config, "leaderElection": {"leaderElect": False}}
                    document["data"][_CONFIG_FILE] = yaml.safe_dump(config)
                case "MutatingWebhookConfiguration" | "ValidatingWebhookConfiguration":
                    document["webhooks"] = [hook for hook in document["webhooks"] if self._is_managed(hook)]
            found.append(document)
        return found

    def _run_binary(self, pod: dict[str, Any], image: str) -> None:
        (container,) = pod["containers"]
        pod["securityContext"] |= {"runAsUser": NONROOT, "runAsGroup": NONROOT, "fsGroup": NONROOT}
        container |= {
            "image": image,
            "imagePullPolicy": "IfNotPresent",
            "command": [f"{PRODUCT_ROOT}/.cache/bin/{self.binary.name}"],
            "resources": {"requests": {"cpu": "50m", "memory": "64Mi"}},
        }
        container["readinessProbe"] |= {"initialDelaySeconds": 1, "periodSeconds": 1}

    def _is_managed(self, hook: dict[str, Any]) -> bool:
        return any(set(rule["apiGroups"]) & self.groups for rule in hook["rules"])

    @contextmanager
    def running(self, kubectl: Kubectl, image: str) -> Iterator[None]:
        """Run it for the duration of a `with` block; `image` is any thin image of the cluster.

        The block must remove its objects before it ends, because only the controller ends their finalizers. Raises
        DevClusterError if it is not built or does not become ready.
        """
        for path in (self.binary, self.manifests):
            if not path.is_file():
                raise DevClusterError(f"{path} must exist, found none; run {self.build} first")
        documents = self.adapted(yaml.load_all(self.manifests.read_text(), Loader=yaml.CSafeLoader), image)
        text = "\n---\n".join(json.dumps(document) for document in documents)
        deployment = f"deployment/{self.name}-controller-manager"
        try:
            kubectl("apply", "--server-side", "--force-conflicts", "--filename=-", stdin=text)
            # The kubelet shows a changed Secret to a running pod after a minute, and to a new one at once. The old pod must
            # be gone: the API server would wait for answers on connections to it.
            self._await("its certificate", lambda: self._has_certificate(kubectl))
            kubectl("delete", "pods", "--all", "--namespace", self.namespace, "--wait=true")
            timeout = f"--timeout={_READY_SECONDS:.0f}s"
            kubectl("rollout", "status", deployment, "--namespace", self.namespace, timeout)
            self._await("its webhooks", lambda: self._webhooks_answer(kubectl))
            yield
        finally:
            # Webhooks without a server would refuse every object.
            for kind in ("mutatingwebhookconfiguration", "validatingwebhookconfiguration"):
                label = f"--selector=app.kubernetes.io/name={self.name}"
                kubectl("delete", kind, label, "--ignore-not-found")
            kubectl(
                "delete", "--filename=-", "--ignore-not-found", "--wait=true", "--timeout=120s", stdin=text
            )

    def _has_certificate(self, kubectl: Kubectl) -> bool:
        """True once the controller has made the certificate of its webhooks."""
        name = f"{self.name}-webhook-server-cert"
        return bool(kubectl.json("get", "secret", name, "--namespace", self.namespace).get("data"))

    def _webhooks_answer(self, kubectl: Kubectl) -> bool:
        """True once the API server reaches the webhooks and trusts their certificate."""
        answer = kubectl.run("create", "--dry-run=server", "--filename=-", stdin=json.dumps(self.probe))
        return answer.returncode == 0

    def _await(self, what: str, holds: Callable[[], bool]) -> None:
        deadline = time.monotonic() + _READY_SECONDS
        while not holds():
            if time.monotonic() > deadline:
                raise DevClusterError(
                    f"{what} must be ready within {_READY_SECONDS:.0f} s after the installation of {self.name}, found none; "
                    f"run kubectl logs --namespace {self.namespace} deployment/{self.name}-controller-manager"
                )
            time.sleep(0.3)
