"""What lets Prometheus, the kubelet and the registry reach the pods of the chart: ports, policies and pull secrets."""

from __future__ import annotations

from typing import Any

from tests.support.chart import CHART, Manifest, only, render

FULL = ("--values", str(CHART / "ci/full-values.yaml"))


def named_ports(objects: list[Manifest]) -> dict[str, int]:
    """The ports of the operator's container by name."""
    (container,) = only(objects, "Deployment")["spec"]["template"]["spec"]["containers"]
    return {port["name"]: port["containerPort"] for port in container["ports"]}


def pods(objects: list[Manifest]) -> dict[str, Any]:
    """Every pod that the chart starts, by the kind of its object."""
    return {
        each["kind"]: each["spec"] if each["kind"] == "Pod" else each["spec"]["template"]["spec"]
        for each in objects
        if each["kind"] in {"Deployment", "DaemonSet", "Pod", "Job"}
    }


def test_a_service_monitor_leads_through_the_service_to_the_metrics_of_the_operator() -> None:
    objects = render(*FULL)
    (endpoint,) = only(objects, "ServiceMonitor")["spec"]["endpoints"]
    (port,) = only(objects, "Service")["spec"]["ports"]
    assert (endpoint["port"], endpoint["path"]) == (port["name"], "/metrics")
    assert port["targetPort"] == "metrics"
    assert "metrics" in named_ports(objects)


def test_a_pod_monitor_gives_the_series_of_a_stage_the_name_of_its_job() -> None:
    (endpoint,) = only(render(*FULL), "PodMonitor")["spec"]["podMetricsEndpoints"]
    source = "__meta_kubernetes_pod_label_finetune_dev_job"
    assert endpoint["relabelings"] == [{"sourceLabels": [source], "targetLabel": "name"}]


def test_the_policy_opens_metrics_to_the_named_peers_and_probes_to_every_node() -> None:
    objects = render(*FULL)
    rules = only(objects, "NetworkPolicy", "operator")["spec"]["ingress"]
    opened = {port["port"]: "from" in rule for rule in rules for port in rule["ports"]}
    assert opened == {"metrics": True, "health": False}
    assert opened.keys() <= named_ports(objects).keys()
    (peers,) = (rule["from"] for rule in rules if "from" in rule)
    assert {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}} in peers


def test_every_pod_of_the_chart_pulls_its_image_with_the_given_secrets() -> None:
    operator, stages = (
        "imagePullSecrets[0].name=of-operator",
        "trainer.podDefaults.imagePullSecrets[0].name=of-stages",
    )
    found = pods(render("--set", f"{operator},{stages},prePull.enabled=true"))
    assert {kind: pod.get("imagePullSecrets") for kind, pod in found.items()} == {
        "Deployment": [{"name": "of-operator"}],
        "Pod": [{"name": "of-operator"}],  # of `helm test`, which runs the operator's image
        "DaemonSet": [{"name": "of-stages"}],
    }
