"""The GPUs of the cluster: nodes as the watch has told them, and the administrator's catalogue.

Nodes say something every few seconds. Only what changes the GPUs that somebody has asked for counts as a change, and
a job's decision is remembered until then, so that thousands of jobs with like needs cost one estimate.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence

from finetune_operator.sizing.decision import Fits, Question, Refused, decide_training
from finetune_operator.sizing.gpus.gpu import Offer
from finetune_operator.sizing.gpus.nodes import NodeRecord
from finetune_operator.sizing.gpus.offers import offers
from finetune_operator.sizing.gpus.profiles import GpuProfile

REMEMBERED_DECISIONS = 512
"""Enough for every kind of job that a cluster runs at one time; one takes a few kilobytes."""
_MEMORYLESS = {"seed", "learning_rate", "schedule", "epochs", "maximum_steps", "checkpoint"}
_PLACELESS = {"prepare", "train", "merge", "runtime_class_name", "priority_class_name"}
"""What of a spec has no part in a decision, so that jobs that differ in it share one."""


class Inventory:
    """Nodes and GPUs at one moment. Its values never change; what it computes is remembered."""

    def __init__(
        self,
        nodes: Mapping[str, NodeRecord],
        profiles: Sequence[GpuProfile] = (),
        *,
        allow_time_slicing: bool = False,
        problem: str | None = None,
    ) -> None:
        """`problem` says why nodes are not known, None where they are."""
        self.nodes = nodes
        self.problem = problem
        self._profiles = profiles
        self._allow_time_slicing = allow_time_slicing
        self._offers: dict[str, tuple[Offer, ...]] = {}
        self._decisions: OrderedDict[tuple[object, ...], Fits | Refused] = OrderedDict()

    @property
    def asked_for(self) -> frozenset[str]:
        """Extended resources that somebody has asked about."""
        return frozenset(self._offers)

    def with_nodes(self, nodes: Mapping[str, NodeRecord]) -> Inventory:
        """The same GPUs beside other nodes; what was computed of them still holds."""
        other = Inventory(
            nodes, self._profiles, allow_time_slicing=self._allow_time_slicing, problem=self.problem
        )
        other._offers, other._decisions = self._offers, self._decisions
        return other

    def offers(self, resource_name: str) -> tuple[Offer, ...]:
        """Every GPU of this extended resource, of nodes and catalogue."""
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

    def decide(self, question: Question) -> Fits | Refused:
        """Where and how the run fits, as sizing.decision has it."""
        spec = question.spec
        key = (
            spec.training.model_dump_json(exclude=_MEMORYLESS),
            spec.resources.model_dump_json(exclude=_PLACELESS),
            question.shape,
            question.sequence_length,
        )
        found = self._decisions.get(key)
        if found is None:
            found = decide_training(question, self.offers(spec.resources.gpu_resource_name))
            self._decisions[key] = found
            if len(self._decisions) > REMEMBERED_DECISIONS:
                self._decisions.popitem(last=False)
        else:
            self._decisions.move_to_end(key)
        return found


class GpuStore:
    """Nodes by name. Not for use from several threads."""

    def __init__(self, profiles: Sequence[GpuProfile], *, allow_time_slicing: bool) -> None:
        """`profiles` is the catalogue; time-sliced GPUs count only where `allow_time_slicing`."""
        self._profiles = tuple(profiles)
        self._allow_time_slicing = allow_time_slicing
        self._nodes: dict[str, NodeRecord] = {}
        self._problem: str | None = None
        self._asked_for: frozenset[str] = frozenset()
        self._inventory = self._snapshot()

    @property
    def inventory(self) -> Inventory:
        """The present nodes and GPUs; the same object until a node changes."""
        return self._inventory

    @property
    def asked_for(self) -> frozenset[str]:
        """Extended resources that jobs have asked about so far."""
        return self._asked_for | self._inventory.asked_for

    def __len__(self) -> int:
        return len(self._nodes)

    def put(self, node: NodeRecord) -> bool:
        """Store a node; returns whether the GPUs that somebody has asked for have changed."""
        held = self._nodes.get(node.name)
        if held is not None and _version(node) < _version(held):
            return False
        if held is not None and held.uid == node.uid and node.same_as(held):
            self._nodes[node.name] = node
            return False
        return self._replace({**self._nodes, node.name: node}, [(held, node)])

    def remove(self, name: str, uid: str) -> bool:
        """Forget a node, unless a namesake has taken its place; returns the same as `put`."""
        held = self._nodes.get(name)
        if held is None or held.uid != uid:
            return False
        return self._replace({key: node for key, node in self._nodes.items() if key != name}, [(held, None)])

    def replace(self, nodes: Iterable[NodeRecord]) -> bool:
        """Take a full LIST as the truth; returns the same as `put`. A watch cannot be ahead of it by much."""
        listed = {node.name: node for node in nodes}
        for name, held in self._nodes.items():
            if name in listed and _version(held) > _version(listed[name]):
                listed[name] = held
        names = sorted({*listed, *self._nodes})
        changes = [(self._nodes.get(name), listed.get(name)) for name in names]
        self._problem = None
        return self._replace(listed, changes)

    def fail(self, problem: str) -> bool:
        """Remember that nodes cannot be read, and why; returns whether that is news."""
        if self._problem == problem:
            return False
        self._problem = problem
        self._asked_for = self.asked_for
        self._nodes = {}
        self._inventory = self._snapshot()
        return True

    def _replace(
        self, nodes: dict[str, NodeRecord], changes: list[tuple[NodeRecord | None, NodeRecord | None]]
    ) -> bool:
        changes = [(old, new) for old, new in changes if not _same(old, new)]
        before = self._inventory
        self._nodes = nodes
        if not changes and before.problem == self._problem:
            return False
        self._asked_for = self.asked_for
        changed = before.problem != self._problem or any(
            before.offers_of(old, resource) != before.offers_of(new, resource)
            for resource in self._asked_for
            for old, new in changes
        )
        self._inventory = self._snapshot() if changed else before.with_nodes(nodes)
        return changed

    def _snapshot(self) -> Inventory:
        return Inventory(
            self._nodes,
            self._profiles,
            allow_time_slicing=self._allow_time_slicing,
            problem=self._problem,
        )


def _same(old: NodeRecord | None, new: NodeRecord | None) -> bool:
    if old is None or new is None:
        return old is new
    return old.uid == new.uid and new.same_as(old)


def _version(node: NodeRecord) -> int:
    """Resource versions of one kind are comparable numbers (Kubernetes 1.35 documents it)."""
    return int(node.resource_version)
