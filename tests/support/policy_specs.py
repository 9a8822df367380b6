"""Specs that are drawn around the bounds of a policy: about half of them obey it."""

from __future__ import annotations

import random
from typing import Any

from tests.support.operator import make_spec

LIMITS: dict[str, Any] = {
    "serviceAccountNames": ["tuner"],
    "priorityClassNames": ["batch", "low"],
    "runtimeClassNames": [],
    "schedulerNames": ["default-scheduler"],
    "queueNames": ["gpus", "cpus"],
    "queueNameRequired": True,
    "gpus": 1,
    "gpuResourceNames": ["nvidia.com/gpu"],
    "nodeLabels": {"pool": ["tuning", "spare"], "topology.kubernetes.io/zone": []},
    "tolerations": [
        {"key": "dedicated", "value": "tuning", "effect": "NoSchedule"},
        {"key": "spot"},
        {"key": "plain", "value": ""},
    ],
    "modelSources": ["persistentVolumeClaim", "huggingFace", "s3"],
    "datasetSources": ["configMap", "s3"],
    "destinationKinds": ["persistentVolumeClaim", "s3", "oci"],
    "endpointHosts": ["minio.storage", ".example.com", "[fd00::1]"],
    "proxyHosts": ["proxy.example.com"],
}
"""Every limit, with each form of a value."""

ENDPOINTS = (
    "https://minio.storage",
    "http://MINIO.storage:9000/path",
    "https://minio.storage.evil.org",
    "https://a.b.example.com:443/x",
    "https://example.com",
    "https://notexample.com",
    "http://[FD00::1]:7070/path",
    "http://[fd00::2]/",
    "https://minio.storage:",
    "https://evil.org/minio.storage",
    "https://minio.storage\n/",
    "https://min\u0130o.storage",
)
PROXIES = ("http://proxy.example.com:3128", "https://PROXY.example.com/", "http://proxy.evil.org:3128", "")
SERVERS = (
    "https://minio.storage",
    "http://a.example.com:5000/path",
    "http://[FD00::1]:8080",
    "https://mlflow.evil.org",
)
TOLERATIONS: tuple[dict[str, Any], ...] = (
    {"key": "dedicated", "operator": "Equal", "value": "tuning", "effect": "NoSchedule"},
    {"key": "dedicated", "value": "tuning", "effect": "NoSchedule"},
    {"key": "dedicated", "value": "tuning"},
    {"key": "dedicated", "operator": "Exists", "effect": "NoSchedule"},
    {"key": "dedicated", "value": "serving", "effect": "NoSchedule"},
    {"key": "spot", "operator": "Exists"},
    {"key": "spot", "value": "x", "effect": "NoExecute", "tolerationSeconds": 5},
    {"key": "plain"},
    {"key": "plain", "operator": "Exists"},
    {"operator": "Exists"},
    {"operator": "Exists", "effect": "NoExecute"},
)
REQUIREMENTS: tuple[dict[str, Any], ...] = (
    {"key": "pool", "operator": "In", "values": ["tuning"]},
    {"key": "pool", "operator": "In", "values": ["tuning", "serving"]},
    {"key": "pool", "operator": "NotIn", "values": ["tuning"]},
    {"key": "pool", "operator": "Exists"},
    {"key": "topology.kubernetes.io/zone", "operator": "NotIn", "values": ["a"]},
    {"key": "topology.kubernetes.io/zone", "operator": "DoesNotExist", "values": []},
    {"key": "cores", "operator": "Gt", "values": ["4"]},
)
SELECTORS = (
    {"pool": "tuning"},
    {"pool": "serving"},
    {"pool": ""},
    {"topology.kubernetes.io/zone": "b"},
    {"x": "y"},
)
NAMES = {
    "priorityClassName": ("batch", "low", "high"),
    "runtimeClassName": ("nvidia",),
    "schedulerName": ("default-scheduler", "other"),
}
MODELS: tuple[dict[str, Any], ...] = (
    {"persistentVolumeClaim": {"claimName": "models", "path": "smol"}},
    {"huggingFace": {"repository": "org/name"}},
    {"gcs": {"uri": "gs://models/org/name"}},
)


PLACES: tuple[dict[str, Any], ...] = (
    {"persistentVolumeClaim": {"claimName": "artifacts"}},
    {"gcs": {"uri": "gs://models/bot"}},
    {"huggingFace": {"repository": "team/bot", "tokenSecretRef": {"name": "hub", "key": "token"}}},
    {"oci": {"reference": "Minio.storage:5000/team/bot:1"}},
    {"oci": {"reference": "registry.evil.org/team/bot:1"}, "overwrite": True},
)


def draw_spec(draw: random.Random) -> dict[str, Any]:
    """A valid spec with few settings around the bounds, or with many."""
    rate = draw.choice((0.01, 0.03, 0.4))

    def wants() -> bool:
        return draw.random() < rate

    spec = make_spec(resources={}, queueName=draw.choice(("gpus",) * 9 + ("mine",)))
    if wants():
        del spec["queueName"]
    if wants():
        spec["cpuQueueName"] = draw.choice(("cpus", "mine"))
    if wants():
        spec["resources"]["gpuResourceName"] = draw.choice(("nvidia.com/gpu", "amd.com/gpu"))
    numbers = ({"gpus": 2}, {"maximumGpus": 1}, {"maximumGpus": 4})
    spec["resources"] |= draw.choice(numbers) if wants() else {}
    _fill(spec["resources"], draw, rate, ("priorityClassName", "runtimeClassName"))
    template = _draw_pods(draw, rate)
    if template:
        spec["podTemplate"] = template
    _draw_sources(spec, draw, wants())
    if wants():
        places = (*PLACES, {"s3": {"uri": "s3://models/bot", "endpoint": draw.choice(ENDPOINTS)}})
        spec["output"] = {
            "destinations": [
                {"name": f"place-{number}", **place}
                for number, place in enumerate(draw.sample(places, draw.randint(1, 3)))
            ]
        }
    if wants():
        spec["network"] = {"httpsProxy": draw.choice(PROXIES), "httpProxy": draw.choice(PROXIES)}
    if wants():
        spec.setdefault("network", {})["huggingFaceEndpoint"] = draw.choice(SERVERS)
    if wants():
        names = draw.sample(["mlflow", "modelRegistry"], draw.randint(0, 2))
        spec["tracking"] = {name: {"uri": draw.choice(SERVERS)} for name in names}
    return spec


def _draw_pods(draw: random.Random, rate: float) -> dict[str, Any]:
    """A pod template with some of the four blocks; empty for none."""
    blocks: dict[str, dict[str, Any]] = {}
    for block in ("", "prepare", "train", "merge"):
        content: dict[str, Any] = {}
        _fill(content, draw, rate, tuple(NAMES))
        if draw.random() < rate:
            content["nodeSelectorTerms"] = [
                {"matchExpressions": draw.sample(REQUIREMENTS, draw.randint(1, 3))} for _ in range(2)
            ]
        if draw.random() < rate:
            content["labels"] = {"kueue.x-k8s.io/queue-name": draw.choice(("gpus", "mine")), "a": "b"}
        blocks[block] = content
    if draw.random() < rate:
        blocks[""]["serviceAccountName"] = draw.choice(("tuner", "admin"))
    return {**blocks.pop(""), **{block: content for block, content in blocks.items() if content}}


def _fill(block: dict[str, Any], draw: random.Random, rate: float, names: tuple[str, ...]) -> None:
    for name in names:
        if draw.random() < rate:
            block[name] = draw.choice(NAMES[name])
    if draw.random() < rate:
        block["nodeSelector"] = dict(draw.choice(SELECTORS), **draw.choice(SELECTORS))
    if draw.random() < rate:
        block["tolerations"] = draw.sample(TOLERATIONS, draw.randint(1, 3))


def _draw_sources(spec: dict[str, Any], draw: random.Random, more: bool) -> None:  # noqa: FBT001 -- private
    def store() -> dict[str, Any]:
        return {"s3": {"uri": "s3://bucket/rows", "endpoint": draw.choice(ENDPOINTS)}}

    if more:
        spec["model"]["source"] = draw.choice((*MODELS, store(), store()))
        rows: tuple[dict[str, Any], ...] = (
            {"url": {"secretKeyRef": {"name": "rows", "key": "url"}}},
            store(),
        )
        spec["dataset"]["source"] = draw.choice(rows)
    if more and draw.random() < 0.5:
        spec["dataset"]["validation"] = {
            "source": draw.choice(({"configMap": {"name": "rows", "key": "held-out"}}, store()))
        }
