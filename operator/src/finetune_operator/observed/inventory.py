"""The GPUs of the cluster at one moment: those of its nodes, and those that the administrator's profiles can start."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import TypeVar

from finetune_operator.sizing.cost.prices import CostSettings
from finetune_operator.sizing.cost.work import Rows
from finetune_operator.sizing.decision import Feasible, Infeasible, decide_training
from finetune_operator.sizing.gpu_number import decide_number, possible_numbers
from finetune_operator.sizing.gpus.gpu import Offer
from finetune_operator.sizing.gpus.nodes import NodeRecord
from finetune_operator.sizing.gpus.offers import offers, other_offers
from finetune_operator.sizing.gpus.profiles import GpuProfile
from finetune_operator.sizing.request import SizingRequest

Value = TypeVar("Value")

REMEMBERED_DECISIONS = 512
"""Enough for all kinds of jobs that a cluster runs at one time. Each decision takes a few kilobytes."""
_IRRELEVANT_TRAINING = {
    "seed",
    "learning_rate",
    "schedule",
    "epochs",
    "maximum_steps",
    "checkpoint",
    "weight_decay",
    "maximum_gradient_norm",
    "neftune_noise_alpha",
    "packing",
    "early_stopping",
}
_IRRELEVANT_RESOURCES = {"prepare", "train", "merge", "runtime_class_name", "priority_class_name"}
"""Fields of a spec that do not affect a decision, so jobs that differ only in them share one."""


class Inventory:
    """Nodes and GPUs at one moment. They never change, and computed values are cached."""

    def __init__(
        self,
        nodes: Mapping[str, NodeRecord],
        profiles: Sequence[GpuProfile] = (),
        *,
        allow_time_slicing: bool = False,
        problem: str | None = None,
    ) -> None:
        """`problem` says why the nodes are unknown; None if they are known."""
        self.nodes = nodes
        self.problem = problem
        self._profiles = profiles
        self._allow_time_slicing = allow_time_slicing
        self._offers: dict[str, tuple[Offer, ...]] = {}
        self._decisions: OrderedDict[tuple[object, ...], Feasible | Infeasible] = OrderedDict()
        self._numbers: OrderedDict[tuple[object, ...], tuple[int, ...]] = OrderedDict()

    @cached_property
    def node_addresses(self) -> frozenset[str]:
        """The own IP addresses of all nodes."""
        return frozenset(address for node in self.nodes.values() for address in node.addresses)

    @property
    def asked_for(self) -> frozenset[str]:
        """Extended resources that jobs have asked for."""
        return frozenset(self._offers)

    def with_nodes(self, nodes: Mapping[str, NodeRecord]) -> Inventory:
        """The same GPUs with other nodes. The cached values stay valid."""
        other = Inventory(
            nodes, self._profiles, allow_time_slicing=self._allow_time_slicing, problem=self.problem
        )
        other._offers, other._decisions, other._numbers = self._offers, self._decisions, self._numbers
        return other

    def offers(self, resource_name: str) -> tuple[Offer, ...]:
        """Every GPU of this extended resource, on nodes and in GPU profiles."""
        found = self._offers.get(resource_name)
        if found is None:
            found = offers(
                self.nodes.values(),
                self._profiles,
                resource_name,
                allow_time_slicing=self._allow_time_slicing,
            )
            self._offers[resource_name] = found
        return found

    def offers_of(self, node: NodeRecord | None, resource_name: str) -> tuple[Offer, ...]:
        """The GPUs of one node."""
        return (
            ()
            if node is None
            else offers((node,), (), resource_name, allow_time_slicing=self._allow_time_slicing)
        )

    def _other_offers(self, resource_name: str) -> tuple[Offer, ...]:
        """The GPUs of all other extended resources."""
        return other_offers(
            self.nodes.values(), self._profiles, resource_name, allow_time_slicing=self._allow_time_slicing
        )

    def decide(self, request: SizingRequest) -> Feasible | Infeasible:
        """Decide where and how a run fits, see sizing.decision."""
        return self._decide_on(request, self.offers(request.spec.resources.gpu_resource_name), brief=False)

    def _decide_on(
        self, request: SizingRequest, offered: Sequence[Offer], *, brief: bool
    ) -> Feasible | Infeasible:
        """Decide about a run that may have only these of the inventory's offers, which live as long as the decisions."""
        spec, name = request.spec, request.spec.resources.gpu_resource_name
        key = (
            spec.training.model_dump_json(exclude=_IRRELEVANT_TRAINING),
            spec.resources.model_dump_json(exclude=_IRRELEVANT_RESOURCES),
            request.shape,
            None if request.trace is None else request.trace.model_dump_json(),
            request.sequence_length,
            request.node_rules,
            request.abilities,
            brief,
            None if offered is self.offers(name) else frozenset(map(id, offered)),
        )
        return _remembered(
            self._decisions,
            key,
            lambda: decide_training(request, offered, lambda: self._other_offers(name), brief=brief),
        )

    def decide_number(
        self, request: SizingRequest, rows: Rows | None, cost: CostSettings
    ) -> tuple[SizingRequest, Feasible | Infeasible]:
        """Decide on how many GPUs, where and how a run fits, see sizing.gpu_number."""
        resources, training = request.spec.resources, request.spec.training
        key = (
            resources.model_dump_json(exclude=_IRRELEVANT_RESOURCES),
            training.effective_batch_size,
            training.parallelism,
            request.node_rules,
        )
        offered = self.offers(resources.gpu_resource_name)
        numbers = _remembered(self._numbers, key, lambda: possible_numbers(request, offered))
        return decide_number(request, numbers, offered, self._decide_on, rows, cost)


def _remembered(
    known: OrderedDict[tuple[object, ...], Value], key: tuple[object, ...], find: Callable[[], Value]
) -> Value:
    """Return the value of `key`; the one that was used least recently is forgotten if there are too many."""
    if key in known:
        known.move_to_end(key)
        return known[key]
    found = known[key] = find()
    if len(known) > REMEMBERED_DECISIONS:
        known.popitem(last=False)
    return found
