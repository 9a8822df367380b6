"""Measures how long the pods of TRAIN hold their GPUs."""

from __future__ import annotations

from collections.abc import Mapping

from finetune_operator.api.spec import FineTuneJobSpec
from finetune_operator.api.stages import Stage
from finetune_operator.lifecycle.reconciliation import Reconciliation
from finetune_operator.lifecycle.recorded_plan import recorded_gpus
from finetune_operator.observed.observation import Pod
from finetune_operator.status.usage import PodTime, Price

UNKNOWN_PRODUCT = "Unknown"


def meter_gpus(state: Reconciliation) -> Reconciliation:
    """Record the time of the current attempt's pods, with the price that applies when they start.

    Pods that run at the same time start and end together, so the first one stands for all with the GPUs of all.
    """
    spec = state.active_spec
    if spec is None or state.draft.stage is not Stage.TRAIN:
        return state
    child = state.current_child
    pods = () if child is None else sorted(state.pods_of(child), key=lambda pod: pod.created)
    times = [found for pod in pods if pod.index == 0 and (found := _time_of(state, spec, pod)) is not None]
    return state.with_draft(state.draft.record_gpu_time(times))


def _time_of(state: Reconciliation, spec: FineTuneJobSpec, pod: Pod) -> PodTime | None:
    if pod.started is None:
        return None
    inventory, name = state.observation.inventory, spec.resources.gpu_resource_name
    node = inventory.nodes.get(pod.node)
    offers = inventory.offers_of(node, name)
    product = offers[0].gpu.product if offers else _planned_product(state)
    price = state.settings.cost.price(product, {} if node is None else node.labels)
    return PodTime(
        uid=pod.uid,
        started=pod.started,
        ended=None if pod.end is None else pod.end.finished,
        gone=not pod.live,
        gpus=recorded_gpus(spec, state.draft.plan),
        product=product,
        price=None if price is None else Price(price.per_gpu_hour, state.settings.cost.currency),
    )


def _planned_product(state: Reconciliation) -> str:
    """The product of a node that cannot be read: that of the plan, if the plan fits no other."""
    gpu = state.draft.plan.get("gpu")
    # Somebody may have edited the status.
    products = gpu.get("offers") if isinstance(gpu, Mapping) else None
    return str(products[0]) if isinstance(products, list) and len(products) == 1 else UNKNOWN_PRODUCT
