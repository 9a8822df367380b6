from __future__ import annotations

import random
from typing import Any

import pytest
from finetune_operator.api.policy import Limits, PolicyError, parse_policy, violations
from finetune_operator.api.spec import FineTuneJobSpec

from tests.support.operator import make_spec
from tests.support.policy_specs import LIMITS, draw_spec

S3 = {"uri": "s3://bucket/rows", "endpoint": "https://minio.storage:9000"}


def broken(limits: dict[str, Any], **spec: Any) -> tuple[str, ...]:
    """What a small job with these members breaks."""
    return violations(FineTuneJobSpec.parse(make_spec(**spec)), Limits.model_validate(limits))


def at(path: str, value: Any) -> dict[str, Any]:
    """A member of a spec that has `value` at `path`."""
    first, *rest = path.split(".")
    for name in reversed(rest):
        value = {name: value}
    return {first: value}


def test_without_limits_everything_is_allowed() -> None:
    draw = random.Random(5)  # noqa: S311 -- a seeded test
    for _ in range(200):
        assert violations(FineTuneJobSpec.parse(draw_spec(draw)), Limits()) == ()


def test_what_a_job_leaves_out_comes_from_the_administrator() -> None:
    nothing = dict.fromkeys(LIMITS, ())
    kept = (
        "gpus",
        "modelSources",
        "datasetSources",
        "gpuResourceNames",
        "queueNameRequired",
        "nodeLabels",
        "destinationKinds",
    )
    assert broken({name: value for name, value in nothing.items() if name not in kept}) == ()


@pytest.mark.parametrize(
    "block", ["podTemplate", "podTemplate.prepare", "podTemplate.train", "podTemplate.merge"]
)
@pytest.mark.parametrize(
    ("limit", "field"),
    [
        ("priorityClassNames", "priorityClassName"),
        ("runtimeClassNames", "runtimeClassName"),
        ("schedulerNames", "schedulerName"),
    ],
)
def test_a_class_is_limited_in_every_block_of_pod_settings(block: str, limit: str, field: str) -> None:
    path = f"{block}.{field}"
    assert broken({limit: ["a", "b"]}, **at(path, "b")) == ()
    assert broken({limit: ["a", "b"]}, **at(path, "c")) == (f"spec.{path} must be one of a, b, found c",)
    assert broken({limit: []}, **at(path, "c")) == (f"spec.{path} must be left out, found c",)


@pytest.mark.parametrize(
    ("limit", "path"),
    [
        ("serviceAccountNames", "podTemplate.serviceAccountName"),
        ("priorityClassNames", "resources.priorityClassName"),
        ("runtimeClassNames", "resources.runtimeClassName"),
        ("queueNames", "queueName"),
        ("queueNames", "cpuQueueName"),
    ],
)
def test_a_name_is_limited_where_it_stands(limit: str, path: str) -> None:
    assert broken({limit: ["a"]}, **at(path, "a")) == ()
    assert broken({limit: ["a"]}, **at(path, "b")) == (f"spec.{path} must be one of a, found b",)


def test_a_pod_does_not_reach_a_queue_by_its_label() -> None:
    labels = at("podTemplate.train.labels", {"kueue.x-k8s.io/queue-name": "mine"})
    (message,) = broken({"queueNames": ["gpus"]}, **labels)
    assert message == (
        "spec.podTemplate.train.labels[kueue.x-k8s.io/queue-name] must be one of gpus, found mine"
    )


def test_a_queue_can_be_required() -> None:
    assert broken({"queueNameRequired": True}) == ("spec.queueName must be set, found none",)
    assert broken({"queueNameRequired": True}, queueName="any") == ()
    assert broken({"queueNameRequired": False}) == ()


def test_the_kind_of_gpu_is_limited() -> None:
    assert broken({"gpus": 1, "gpuResourceNames": ["nvidia.com/gpu"]}) == ()
    assert broken({"gpuResourceNames": ["amd.com/gpu"]}) == (
        "spec.resources.gpuResourceName must be one of amd.com/gpu, found nvidia.com/gpu",
    )


def test_more_gpus_than_allowed_are_refused() -> None:
    spec = FineTuneJobSpec.parse(make_spec())
    spec = spec.model_copy(update={"resources": spec.resources.model_copy(update={"gpus": 4})})
    assert violations(spec, Limits(gpus=4)) == ()
    assert violations(spec, Limits(gpus=2)) == ("spec.resources.gpus must be at most 2, found 4",)


def test_a_job_must_not_be_allowed_more_gpus_than_its_namespace() -> None:
    spec = FineTuneJobSpec.parse(make_spec(resources={"maximumGpus": 4}))
    assert violations(spec, Limits(gpus=4)) == ()
    assert violations(spec, Limits(gpus=2)) == ("spec.resources.maximumGpus must be at most 2, found 4",)


@pytest.mark.parametrize("block", ["resources", "podTemplate", "podTemplate.prepare"])
def test_a_selector_has_allowed_labels_with_allowed_values(block: str) -> None:
    limits = {"nodeLabels": {"pool": ["a", "b"], "zone": []}}
    path = f"{block}.nodeSelector"
    assert broken(limits, **at(path, {"pool": "a", "zone": "anywhere"})) == ()
    bound = f"spec.{path} must have only pool=a|b, zone=*"
    assert broken(limits, **at(path, {"pool": "c"})) == (f"{bound}, found pool=c",)
    assert broken(limits, **at(path, {"x": "y"})) == (f"{bound}, found x=y",)
    assert broken({"nodeLabels": {}}, **at(path, {"x": "y"})) == (f"spec.{path} must be left out, found x=y",)


@pytest.mark.parametrize(
    ("requirement", "allowed"),
    [
        ({"key": "pool", "operator": "In", "values": ["a"]}, True),
        ({"key": "pool", "operator": "In", "values": ["a", "c"]}, False),
        ({"key": "pool", "operator": "NotIn", "values": ["a"]}, False),
        ({"key": "pool", "operator": "Exists"}, False),
        ({"key": "zone", "operator": "NotIn", "values": ["x"]}, True),
        ({"key": "other", "operator": "DoesNotExist"}, False),
    ],
)
def test_a_term_selects_only_nodes_that_a_selector_could(
    requirement: dict[str, Any], *, allowed: bool
) -> None:
    terms = at("podTemplate.train.nodeSelectorTerms", [{"matchExpressions": [requirement]}])
    found = broken({"nodeLabels": {"pool": ["a", "b"], "zone": []}}, **terms)
    assert (found == ()) is allowed


@pytest.mark.parametrize(
    ("toleration", "allowed"),
    [
        ({"key": "dedicated", "value": "ml", "effect": "NoSchedule"}, True),
        ({"key": "dedicated", "operator": "Equal", "value": "ml", "effect": "NoSchedule"}, True),
        ({"key": "dedicated", "value": "ml"}, False),
        ({"key": "dedicated", "operator": "Exists", "effect": "NoSchedule"}, False),
        ({"key": "spot", "operator": "Exists"}, True),
        ({"key": "spot", "value": "x", "effect": "NoExecute"}, True),
        ({"operator": "Exists"}, False),
    ],
)
def test_a_toleration_matches_no_other_taint_than_an_allowed_one(
    toleration: dict[str, Any], *, allowed: bool
) -> None:
    limits = {"tolerations": [{"key": "dedicated", "value": "ml", "effect": "NoSchedule"}, {"key": "spot"}]}
    for path in ("resources.tolerations", "podTemplate.merge.tolerations"):
        found = broken(limits, **at(path, [toleration]))
        assert (found == ()) is allowed
        assert all(
            each.startswith(f"spec.{path} must have only dedicated=ml:NoSchedule, spot=*:*, found ")
            for each in found
        )


@pytest.mark.parametrize(
    ("url", "allowed"),
    [
        ("https://minio.storage", True),
        ("http://MINIO.storage:9000/path", True),
        ("https://minio.storage.evil.org", False),
        ("https://evil.org/minio.storage", False),
        ("https://a.b.example.com", True),
        ("https://example.com", False),
        ("https://notexample.com", False),
        ("http://[FD00::1]:7070/x", True),
        ("http://[fd00::2]", False),
        ("https://minio.storage\u212a", False),
        ("no-url", False),
    ],
)
def test_an_endpoint_has_an_allowed_host(url: str, *, allowed: bool) -> None:
    limits = {"endpointHosts": ["minio.storage", ".example.com", "[fd00::1]"]}
    store = {"s3": {**S3, "endpoint": url}}
    spec = {"model": {"source": store}, "dataset": {"source": store, "validation": {"source": store}}}
    assert len(broken(limits, **spec)) == (0 if allowed else 3)
    proxies = {"network": {"httpsProxy": "http://proxy:1", "httpProxy": ""}}
    assert broken({"proxyHosts": []}, **proxies) == (
        "spec.network.httpsProxy must be left out, found http://proxy:1",
    )


def test_the_kinds_of_sources_are_limited() -> None:
    spec = {"dataset": {"source": {"url": {"secretKeyRef": {"name": "rows", "key": "url"}}}}}
    assert broken({"datasetSources": ["configMap", "s3"], "modelSources": ["persistentVolumeClaim"]}) == ()
    assert broken({"datasetSources": ["configMap", "s3"]}, **spec) == (
        "spec.dataset.source must be one of configMap, s3, found url",
    )
    assert broken({"modelSources": ["s3"]}) == (
        "spec.model.source must be one of s3, found persistentVolumeClaim",
    )


def test_the_places_to_publish_to_are_limited() -> None:
    places = [
        {"name": "claim", "persistentVolumeClaim": {"claimName": "artifacts"}},
        {
            "name": "bucket",
            "s3": {"uri": "s3://models/bot", "endpoint": "https://evil.org"},
            "overwrite": True,
        },
        {"name": "registry", "oci": {"reference": "evil.org:5000/bot:1"}},
    ]
    limits = {"destinationKinds": ["persistentVolumeClaim", "oci"], "endpointHosts": ["minio.storage"]}
    assert broken(limits, output={"destinations": places}) == (
        "spec.output.destinations[bucket] must be one of persistentVolumeClaim, oci, found s3",
        "spec.output.destinations[bucket].s3.endpoint must have one of the hosts minio.storage, found https://evil.org",
        "spec.output.destinations[registry].oci.reference must have one of the hosts minio.storage, found oci://evil.org:5000/bot:1",
    )
    assert broken({"destinationKinds": ["oci"]}) == (
        "spec.output.destination must be one of oci, found persistentVolumeClaim",
    )
    assert broken({"endpointHosts": ["evil.org"]}, output={"destinations": places[2:]}) == ()


def test_the_hosts_of_trackers_and_hubs_are_limited() -> None:
    limits = {"endpointHosts": [".example.com", "[fd00::1]"]}
    evil = "https://evil.org"
    assert broken(
        limits,
        tracking={"mlflow": {"uri": evil}, "modelRegistry": {"uri": f"{evil}/registry"}},
        network={"huggingFaceEndpoint": f"{evil}:8443"},
    ) == tuple(
        f"spec.{field} must have one of the hosts .example.com, [fd00::1], found {url}"
        for field, url in (
            ("tracking.mlflow.uri", evil),
            ("tracking.modelRegistry.uri", f"{evil}/registry"),
            ("network.huggingFaceEndpoint", f"{evil}:8443"),
        )
    )
    allowed = {"mlflow": {"uri": "http://mlflow.example.com:5000"}}
    hub = {"huggingFaceEndpoint": "http://[fd00::1]/hf"}
    assert broken(limits, tracking=allowed, network=hub) == ()
    assert broken(limits, tracking={}) == ()


def test_the_limits_of_an_exception_replace_the_general_ones() -> None:
    policy = parse_policy(
        {
            "limits": {"gpus": 1, "queueNames": []},
            "exceptions": [{"namespaces": ["a", "b"], "limits": {"gpus": 8}}],
        }
    )
    assert policy.limits_of("b") == Limits(gpus=8)
    assert policy.limits_of("c") == Limits(gpus=1, queue_names=())


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"limits": {"images": []}}, "policy.limits.images"),
        ({"limits": {"gpus": 0}}, "policy.limits.gpus"),
        ({"limits": {"endpointHosts": ["https://a"]}}, "policy.limits.endpointHosts.0"),
        ({"limits": {"tolerations": [{"value": "a"}]}}, "policy.limits.tolerations.0.key"),
        ({"exceptions": [{"namespaces": []}]}, "policy.exceptions.0.namespaces"),
        (
            {"exceptions": [{"namespaces": ["a"]}, {"namespaces": ["b", "a"]}]},
            "must name each namespace once, found a",
        ),
    ],
)
def test_a_policy_that_cannot_be_used_is_named(document: dict[str, Any], message: str) -> None:
    with pytest.raises(PolicyError, match=message):
        parse_policy(document)
