"""A real Prometheus in the cluster, which finds its targets through the API server."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import yaml
from devcluster import product
from devcluster.kubectl import Kubectl
from devcluster.layout import BIN

from tests.support.e2e import server_pods
from tests.support.e2e.server_pods import FOLDER

NAME = "prometheus"
PROGRAM = BIN / "prometheus"
"""Built with the discovery of Kubernetes, which Debian's package lacks (`make prometheus-server`)."""
PORT = 9090
ANNOTATIONS = {"prometheus.io/scrape": "true", "prometheus.io/path": "/metrics"}
"""The annotations that many scrape configurations look for."""


def scrape_config(monitor: Mapping[str, Any], interval: str) -> dict[str, Any]:
    """The scrape configuration that the Prometheus operator makes from a ServiceMonitor or a PodMonitor.

    It knows the fields that the chart's monitors have, and raises ValueError at any other.
    """
    spec = dict(monitor["spec"])
    services = monitor["kind"] == "ServiceMonitor"
    (endpoint,) = spec.pop("endpoints" if services else "podMetricsEndpoints")
    selector = spec.pop("selector")["matchLabels"]
    namespaces = spec.pop("namespaceSelector", {"matchNames": [monitor["metadata"]["namespace"]]})
    if spec or endpoint.keys() - {"port", "path", "interval", "honorLabels", "relabelings"}:
        raise ValueError(f"a monitor must have known fields, found {spec} and {endpoint}; add them here")
    kind = "service" if services else "pod"
    port = (
        "__meta_kubernetes_endpointslice_port_name"
        if services
        else "__meta_kubernetes_pod_container_port_name"
    )
    rules = [
        _keep(f"__meta_kubernetes_{kind}_label_{re.sub('[^a-zA-Z0-9_]', '_', key)}", value)
        for key, value in selector.items()
    ]
    rules += [
        _keep(port, endpoint["port"]),
        _copy("__meta_kubernetes_namespace", "namespace"),
        _copy("__meta_kubernetes_pod_name", "pod"),
    ]
    rules += [
        {"source_labels": rule["sourceLabels"], "target_label": rule["targetLabel"]}
        for rule in endpoint.get("relabelings", ())
    ]
    return {
        "job_name": f"{monitor['kind']}/{monitor['metadata']['name']}",
        "scrape_interval": interval,
        "metrics_path": endpoint["path"],
        "honor_labels": endpoint.get("honorLabels", False),
        "kubernetes_sd_configs": [
            _discovery("endpointslice" if services else "pod", namespaces.get("matchNames", []))
        ],
        "relabel_configs": rules,
    }


def annotated_pods(interval: str) -> dict[str, Any]:
    """The usual scrape configuration of pods with annotations, with the labels that the dashboards need."""
    return {
        "job_name": "annotations",
        "scrape_interval": interval,
        "honor_labels": True,
        "kubernetes_sd_configs": [_discovery("pod", [])],
        "relabel_configs": [
            _keep("__meta_kubernetes_pod_annotation_prometheus_io_scrape", "true"),
            _keep("__meta_kubernetes_pod_container_port_name", "metrics|telemetry"),
            _copy("__meta_kubernetes_namespace", "namespace"),
            _copy("__meta_kubernetes_pod_name", "pod"),
        ],
    }


def _keep(source: str, value: str) -> dict[str, Any]:
    return {"action": "keep", "source_labels": [source], "regex": value}


def _copy(source: str, target: str) -> dict[str, Any]:
    return {"source_labels": [source], "target_label": target}


def _discovery(role: str, namespaces: list[str]) -> dict[str, Any]:
    return {
        "role": role,
        "api_server": "https://kubernetes.default.svc",
        "authorization": {"credentials_file": f"{FOLDER}/token"},
        "tls_config": {"ca_file": f"{FOLDER}/ca.crt"},
        **({"namespaces": {"names": namespaces}} if namespaces else {}),
    }


@dataclass(frozen=True)
class Prometheus:
    """Asks the server in the pod through the API server's proxy."""

    kubectl: Kubectl

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The series of an instant query at the present time."""
        return self._ask(f"query?query={quote(expression)}")

    def history(self, expression: str, seconds: float) -> list[dict[str, Any]]:
        """The series of a range query over the last `seconds`."""
        end = time.time()
        return self._ask(f"query_range?query={quote(expression)}&start={end - seconds}&end={end}&step=5")

    def await_series(self, expression: str, *, seconds: float) -> list[dict[str, Any]]:
        """Ask until there is a series. Raises AssertionError after `seconds`."""
        deadline = time.monotonic() + seconds
        while not (found := self.query(expression)):
            assert time.monotonic() < deadline, f"{expression} must have a series within {seconds:.0f} s"
            time.sleep(1)
        return found

    def _ask(self, path: str) -> list[dict[str, Any]]:
        address = f"/api/v1/namespaces/{self.kubectl.namespace}/pods/{NAME}:{PORT}/proxy/api/v1/{path}"
        answer = json.loads(self.kubectl("get", "--raw", address))
        assert answer["status"] == "success", answer
        found: list[dict[str, Any]] = answer["data"]["result"]
        return found


@contextmanager
def prometheus(
    kubectl: Kubectl,
    image: str,
    scrapes: list[dict[str, Any]],
    rules: Mapping[str, Any],
    address: str,
    folder: Path,
) -> Iterator[Prometheus]:
    """Run Prometheus in a pod of kubectl's namespace for the duration of a `with` block.

    `image` has what the program needs besides itself, `address` is that of the API server for pods, and `folder` is empty.
    """
    for scrape in scrapes:
        for discovery in scrape["kubernetes_sd_configs"]:
            discovery["api_server"] = address
    start = (
        f"exec {FOLDER}/prometheus --config.file={FOLDER}/prometheus.yaml"
        f" --storage.tsdb.path={FOLDER}/data --web.listen-address=:{PORT} --log.level=warn"
    )
    kubectl.apply(*_identity(str(kubectl.namespace)))
    try:
        with server_pods.server_pod(kubectl, NAME, image, start=start, port=PORT, env={}):
            _fill(kubectl, scrapes, rules, folder)
            server_pods.await_server(kubectl, NAME)
            yield Prometheus(kubectl)
    finally:
        kubectl("delete", "clusterrole,clusterrolebinding", f"test-{NAME}", "--ignore-not-found")


def _fill(kubectl: Kubectl, scrapes: list[dict[str, Any]], rules: Mapping[str, Any], folder: Path) -> None:
    """Send the program and its configuration to the pod, through `folder`."""
    config = {
        "global": {"evaluation_interval": "2s"},
        "rule_files": [f"{FOLDER}/rules.yaml"],
        "scrape_configs": scrapes,
    }
    (folder / "prometheus.yaml").write_text(yaml.safe_dump(config))
    (folder / "rules.yaml").write_text(yaml.safe_dump(dict(rules)))
    (folder / "token").write_text(kubectl("create", "token", NAME, "--duration=1h").strip())
    root = kubectl.json("get", "configmap", "kube-root-ca.crt")["data"]["ca.crt"]
    (folder / "ca.crt").write_text(root)
    (folder / "prometheus").write_bytes(PROGRAM.read_bytes())
    (folder / "prometheus").chmod(0o755)
    product.fill_volume(kubectl, NAME, folder, "program")
    script = f"mv {FOLDER}/program/* {FOLDER}/ && chmod 755 {FOLDER}/prometheus"
    kubectl("exec", NAME, "--", "sh", "-c", script)


def _identity(namespace: str) -> list[dict[str, Any]]:
    """What the discovery may read: pods, and the endpoints of services."""
    rules = [
        {"apiGroups": [""], "resources": ["pods", "services"], "verbs": ["get", "list", "watch"]},
        {
            "apiGroups": ["discovery.k8s.io"],
            "resources": ["endpointslices"],
            "verbs": ["get", "list", "watch"],
        },
    ]
    rbac = "rbac.authorization.k8s.io/v1"
    return [
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": NAME}},
        {"apiVersion": rbac, "kind": "ClusterRole", "metadata": {"name": f"test-{NAME}"}, "rules": rules},
        {
            "apiVersion": rbac,
            "kind": "ClusterRoleBinding",
            "metadata": {"name": f"test-{NAME}"},
            "roleRef": {
                "apiGroup": "rbac.authorization.k8s.io",
                "kind": "ClusterRole",
                "name": f"test-{NAME}",
            },
            "subjects": [{"kind": "ServiceAccount", "name": NAME, "namespace": namespace}],
        },
    ]
