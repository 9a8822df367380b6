"""Requests and limits of a stage's container, as a namespace's LimitRange and ResourceQuota may demand them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from finetune_operator.api.plan import ONE_GPU, Layout
from finetune_operator.api.pod_merge import PodSettings
from finetune_operator.api.pods import AS_REQUESTED
from finetune_operator.api.quantities import format_bytes, parse_bytes, parse_quantity
from finetune_operator.api.spec import FineTuneJobSpec, StageResources
from finetune_operator.api.stages import Stage
from finetune_operator.settings import TrainerSettings
from finetune_operator.sizing.hosts import HostNeeds


@dataclass(frozen=True)
class _Amount:
    """A request and its limit, None for no limit."""

    request: str
    limit: str | None


def fit_scratch(host: HostNeeds, pods: PodSettings) -> HostNeeds:
    """Give /tmp the size of the pod's ephemeral storage."""
    scratch = _scratch(host, pods).request
    return replace(host, scratch_bytes=parse_bytes(scratch))


def container_resources(
    spec: FineTuneJobSpec,
    stage: Stage,
    trainer: TrainerSettings,
    host: HostNeeds,
    pods: PodSettings,
    layout: Layout = ONE_GPU,
) -> dict[str, Any]:
    """The container's `resources`.

    Memory's limit is its request. A limit of CPU or ephemeral storage is never below a request that somebody set. It
    lowers a request that the operator chose.
    """
    requested = _requested(spec, stage)
    memory = requested.memory or format_bytes(host.memory_bytes)
    given_cpu = requested.cpu or (None if stage is Stage.REPORT else trainer.resources.of(stage).cpu)
    cpu = _amount(given_cpu, host.cpu, pods.cpu_limit)
    scratch = _scratch(host, pods)
    requests = {"cpu": cpu.request, "memory": memory, "ephemeral-storage": scratch.request}
    limits = {"memory": memory}
    if cpu.limit is not None:
        limits["cpu"] = cpu.limit
    if scratch.limit is not None:
        limits["ephemeral-storage"] = scratch.limit
    if stage is Stage.TRAIN:
        gpus = {spec.resources.gpu_resource_name: str(layout.per_node)}
        requests |= gpus
        limits |= gpus
    return {"requests": requests, "limits": limits}


def _scratch(host: HostNeeds, pods: PodSettings) -> _Amount:
    return _amount(pods.ephemeral_storage, format_bytes(host.scratch_bytes), pods.ephemeral_storage_limit)


def _amount(given: str | None, chosen: str, limit: str | None) -> _Amount:
    """A request with its limit; `given` is what somebody set, `chosen` is the operator's choice without it."""
    request = given or chosen
    if limit is None:
        return _Amount(request, None)
    if limit == AS_REQUESTED:
        return _Amount(request, request)
    if parse_quantity(request) <= parse_quantity(limit):
        return _Amount(request, limit)
    return _Amount(limit, limit) if given is None else _Amount(request, request)


def _requested(spec: FineTuneJobSpec, stage: Stage) -> StageResources:
    return {
        Stage.PREPARE: spec.resources.prepare,
        Stage.TRAIN: spec.resources.train,
        Stage.MERGE: spec.resources.merge,
        Stage.REPORT: StageResources(),
    }[stage]
