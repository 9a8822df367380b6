"""Limits of the administrator on what a FineTuneJob may ask for.

The chart renders the same limits as ValidatingAdmissionPolicies. A test compares the verdicts of both. A limit concerns
what a job sets itself. What it leaves out comes from the chart, or from the cluster.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from finetune_operator.api.names import DNS_LABEL, LabelKey, LabelValue, ObjectName, QueueName, ResourceName
from finetune_operator.api.pods import NodeRequirement, StagePod, Toleration
from finetune_operator.api.sources import SpecValue
from finetune_operator.api.spec import FineTuneJobSpec
from finetune_operator.api.stages import QUEUE_LABEL, WORK_STAGES
from finetune_operator.api.tracking import Tracking

HOST = r"^([.]?[a-z0-9]([-a-z0-9.]*[a-z0-9])?|\[[0-9a-f:.]+\])$"
"""A host as a URL names it; after a dot, all names below it. The chart has the same pattern."""

Host = Annotated[str, Field(min_length=1, max_length=253, pattern=HOST)]
Namespace = Annotated[str, Field(min_length=1, max_length=63, pattern=DNS_LABEL)]
ModelSourceName = Literal["persistentVolumeClaim", "huggingFace", "s3", "gcs", "azure"]
DatasetSourceName = Literal["configMap", "persistentVolumeClaim", "url", "huggingFace", "s3", "gcs", "azure"]
DestinationKind = Literal["persistentVolumeClaim", "s3", "gcs", "azure", "huggingFace", "oci"]


class PolicyError(ValueError):
    """A policy that cannot be used. The message names each wrong member."""


class AllowedToleration(SpecValue):
    """Tolerations that a job may have: of this taint key and, if they are set, of this value and this effect."""

    key: LabelKey
    value: LabelValue | None = None
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None

    def covers(self, toleration: Toleration) -> bool:
        """True if the toleration matches no other taints than these."""
        if toleration.key != self.key:
            return False
        if self.value is not None and (
            toleration.operator == "Exists" or (toleration.value or "") != self.value
        ):
            return False
        return self.effect is None or toleration.effect == self.effect

    def __str__(self) -> str:
        """As kubectl writes a taint, with `*` for any value or effect."""
        return f"{self.key}={'*' if self.value is None else self.value}:{self.effect or '*'}"


class Limits(SpecValue):
    """What the jobs of a namespace may ask for. None is no limit, and an empty list allows no value."""

    service_account_names: tuple[ObjectName, ...] | None = None
    priority_class_names: tuple[ObjectName, ...] | None = None
    runtime_class_names: tuple[ObjectName, ...] | None = None
    scheduler_names: tuple[ObjectName, ...] | None = None
    queue_names: tuple[QueueName, ...] | None = None
    queue_name_required: bool | None = None
    """If true, TRAIN must have a queue."""
    gpus: Annotated[int, Field(ge=1)] | None = None
    """The largest number of GPUs."""
    gpu_resource_names: tuple[ResourceName, ...] | None = None
    node_labels: dict[LabelKey, tuple[LabelValue, ...]] | None = None
    """Labels by which a job may select nodes, with their values; an empty list allows every value."""
    tolerations: tuple[AllowedToleration, ...] | None = None
    model_sources: Annotated[tuple[ModelSourceName, ...], Field(min_length=1)] | None = None
    dataset_sources: Annotated[tuple[DatasetSourceName, ...], Field(min_length=1)] | None = None
    destination_kinds: Annotated[tuple[DestinationKind, ...], Field(min_length=1)] | None = None
    endpoint_hosts: tuple[Host, ...] | None = None
    """Hosts of S3-compatible stores, to read from and to publish to, of registries and of trackers."""
    proxy_hosts: tuple[Host, ...] | None = None
    forbid_private_addresses: bool | None = None
    """If true, no dataset, endpoint or proxy may have a private address, although the chart allows it.

    Only the trainer sees the addresses, so a job that needs one fails in PREPARE.
    """


class PolicyException(SpecValue):
    """Limits of some namespaces, instead of the general ones."""

    namespaces: Annotated[tuple[Namespace, ...], Field(min_length=1)]
    limits: Limits = Limits()


class Policy(SpecValue):
    """The chart's `policy`, without what concerns the API server only."""

    limits: Limits = Limits()
    exceptions: tuple[PolicyException, ...] = ()

    def limits_of(self, namespace: str) -> Limits:
        """The limits of one namespace."""
        return next((each.limits for each in self.exceptions if namespace in each.namespaces), self.limits)


def parse_policy(document: Mapping[str, Any]) -> Policy:
    """Parse the chart's `policy`. Raises PolicyError that names each wrong member."""
    try:
        policy = Policy.model_validate(document)
    except ValidationError as error:
        details = [
            f"policy.{'.'.join(str(step) for step in detail['loc'])}: {detail['msg']}"
            for detail in error.errors(include_url=False, include_context=False, include_input=False)[:5]
        ]
        raise PolicyError("; ".join(details)) from error
    named = [namespace for each in policy.exceptions for namespace in each.namespaces]
    twice = sorted({name for name in named if named.count(name) > 1})
    if twice:
        raise PolicyError(
            f"policy.exceptions must name each namespace once, found {', '.join(twice)} more than once"
        )
    return policy


def violations(spec: FineTuneJobSpec, limits: Limits) -> tuple[str, ...]:
    """What a spec breaks: for each value its field, the bound and what was found, in one line."""
    return tuple(message.replace("\n", " ") for rule in RULES for message in rule(spec, limits))


Rule = Callable[[FineTuneJobSpec, Limits], Iterator[str]]


def _names(spec: FineTuneJobSpec) -> Iterator[tuple[str, str, str | None]]:
    """Each name with its limit and its field; None or empty if it is missing."""
    pods, resources = _pods(spec), spec.resources
    yield "service_account_names", "podTemplate.serviceAccountName", spec.pod_template.service_account_name
    yield "priority_class_names", "resources.priorityClassName", resources.priority_class_name
    for field, pod in pods:
        yield "priority_class_names", f"{field}.priorityClassName", pod.priority_class_name
    yield "runtime_class_names", "resources.runtimeClassName", resources.runtime_class_name
    for field, pod in pods:
        yield "runtime_class_names", f"{field}.runtimeClassName", pod.runtime_class_name
    for field, pod in pods:
        yield "scheduler_names", f"{field}.schedulerName", pod.scheduler_name
    yield "queue_names", "queueName", spec.queue_name
    yield "queue_names", "cpuQueueName", spec.cpu_queue_name
    for field, pod in pods:
        yield "queue_names", f"{field}.labels[{QUEUE_LABEL}]", pod.labels.get(QUEUE_LABEL)
    yield "gpu_resource_names", "resources.gpuResourceName", resources.gpu_resource_name
    for name in _members(spec.model.source):
        yield "model_sources", "model.source", name
    for name in _members(spec.dataset.source):
        yield "dataset_sources", "dataset.source", name
    for name in _members(spec.dataset.validation.source):
        yield "dataset_sources", "dataset.validation.source", name
    for name in _members(spec.output.destination):
        yield "destination_kinds", "output.destination", name
    for place in spec.output.destinations or ():
        kind = next(name for name in _members(place) if name not in ("name", "overwrite"))
        yield "destination_kinds", f"output.destinations[{place.name}]", kind


def _other_names(spec: FineTuneJobSpec, limits: Limits) -> Iterator[str]:
    for limit, field, name in _names(spec):
        allowed: tuple[str, ...] | None = getattr(limits, limit)
        if name and allowed is not None and name not in allowed:
            yield f"spec.{field} {_bound(allowed, 'be one of')}, found {name}"


def _missing_queue(spec: FineTuneJobSpec, limits: Limits) -> Iterator[str]:
    if limits.queue_name_required and not spec.queue_name:
        yield "spec.queueName must be set, found none"


def _many_gpus(spec: FineTuneJobSpec, limits: Limits) -> Iterator[str]:
    if limits.gpus is not None and spec.resources.gpus > limits.gpus:
        yield f"spec.resources.gpus must be at most {limits.gpus}, found {spec.resources.gpus}"
    most = spec.resources.maximum_gpus
    if limits.gpus is not None and most is not None and most > limits.gpus:
        yield f"spec.resources.maximumGpus must be at most {limits.gpus}, found {most}"


def _other_node_labels(spec: FineTuneJobSpec, limits: Limits) -> Iterator[str]:
    """A selector is a label and one value, and a requirement of a term may have any operator."""
    allowed = limits.node_labels
    if allowed is None:
        return
    bound = _bound(
        [f"{key}={'|'.join(values) or '*'}" for key, values in sorted(allowed.items())], "have only"
    )
    selectors = [("resources", spec.resources.node_selector)]
    selectors += [(field, pod.node_selector) for field, pod in _pods(spec)]
    for field, selector in selectors:
        for key, value in selector.items():
            if key not in allowed or (allowed[key] and value not in allowed[key]):
                yield f"spec.{field}.nodeSelector {bound}, found {key}={value}"
    for field, pod in _pods(spec):
        for each in (each for term in pod.node_selector_terms for each in term.match_expressions):
            if not _requires_allowed(each, allowed):
                found = f"{each.key} {each.operator} {'|'.join(each.values)}".strip()
                yield f"spec.{field}.nodeSelectorTerms {bound}, found {found}"


def _requires_allowed(requirement: NodeRequirement, allowed: Mapping[str, Collection[str]]) -> bool:
    """Only `In` says which values a node has. The other operators need a label whose values are not limited."""
    values = allowed.get(requirement.key)
    if values is None:
        return False
    return not values or (requirement.operator == "In" and set(requirement.values) <= set(values))


def _other_tolerations(spec: FineTuneJobSpec, limits: Limits) -> Iterator[str]:
    if limits.tolerations is None:
        return
    bound = _bound([str(each) for each in limits.tolerations], "have only")
    lists = [("resources", spec.resources.tolerations)]
    lists += [(field, pod.tolerations) for field, pod in _pods(spec)]
    for field, tolerations in lists:
        for each in tolerations:
            if not any(allowed.covers(each) for allowed in limits.tolerations):
                value = "*" if each.operator == "Exists" else each.value or ""
                found = f"{each.key or '*'}={value}:{each.effect or '*'}"
                yield f"spec.{field}.tolerations {bound}, found {found}"


def _other_hosts(spec: FineTuneJobSpec, limits: Limits) -> Iterator[str]:
    sources = {
        "model.source": spec.model.source,
        "dataset.source": spec.dataset.source,
        "dataset.validation.source": spec.dataset.validation.source,
    }
    urls = [
        (limits.endpoint_hosts, f"{field}.s3.endpoint", source.s3.endpoint)
        for field, source in sources.items()
        if source is not None and source.s3 is not None
    ]
    places = [(f"output.destinations[{place.name}]", place) for place in spec.output.destinations or ()]
    urls += [
        (limits.endpoint_hosts, f"{field}.s3.endpoint", place.s3.endpoint)
        for field, place in places
        if place.s3 is not None
    ]
    urls += [
        (limits.endpoint_hosts, f"{field}.oci.reference", f"oci://{place.oci.reference}")
        for field, place in places
        if place.oci is not None
    ]
    trackers = spec.tracking or Tracking()
    urls += [
        (limits.endpoint_hosts, f"tracking.{name}.uri", tracker.uri)
        for name, tracker in (("mlflow", trackers.mlflow), ("modelRegistry", trackers.model_registry))
        if tracker is not None
    ]
    urls.append((limits.endpoint_hosts, "network.huggingFaceEndpoint", spec.network.hugging_face_endpoint))
    urls.append((limits.proxy_hosts, "network.httpsProxy", spec.network.https_proxy))
    urls.append((limits.proxy_hosts, "network.httpProxy", spec.network.http_proxy))
    for allowed, field, url in urls:
        if url and allowed is not None and not _is_at(url, allowed):
            yield f"spec.{field} {_bound(allowed, 'have one of the hosts')}, found {url}"


def _is_at(url: str, hosts: Collection[str]) -> bool:
    """True if the URL has one of these hosts, on any port. The CRD allows no user in it.

    Only ASCII letters are made small, as CEL does it. A text that is no URL is at no host.
    """
    authority = [*url.encode("utf-8", "replace").lower().decode().split("/"), "", ""][2]
    host = f"{authority.split(']')[0]}]" if authority.startswith("[") else authority.split(":")[0]
    return any(host == each or (each.startswith(".") and host.endswith(each)) for each in hosts)


RULES: tuple[Rule, ...] = (
    _other_names,
    _missing_queue,
    _many_gpus,
    _other_node_labels,
    _other_tolerations,
    _other_hosts,
)
"""Every rule, in the order of the chart's template."""


def _bound(allowed: Collection[str], verb: str) -> str:
    return f"must {verb} {', '.join(allowed)}" if allowed else "must be left out"


def _pods(spec: FineTuneJobSpec) -> list[tuple[str, StagePod]]:
    """The blocks of pod settings with their fields."""
    template = spec.pod_template
    return [
        ("podTemplate", template),
        *((f"podTemplate.{stage.slug}", template.of(stage)) for stage in WORK_STAGES),
    ]


def _members(source: SpecValue | None) -> list[str]:
    """The names of the members of a union that are set."""
    if source is None:
        return []
    fields = type(source).model_fields
    return [info.alias or name for name, info in fields.items() if getattr(source, name) is not None]
