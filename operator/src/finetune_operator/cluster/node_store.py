"""The nodes that the watch has reported, and the inventory of their GPUs.

Nodes send a heartbeat every few seconds. Only a change of GPUs that a job has asked for makes a new inventory. Until
then the inventory caches its decisions, so thousands of jobs with equal needs cost one estimate.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from finetune_operator.cluster.tombstones import Tombstones
from finetune_operator.observed.inventory import Inventory
from finetune_operator.sizing.gpus.nodes import NodeRecord
from finetune_operator.sizing.gpus.profiles import GpuProfile


class GpuStore:
    """Nodes by name. Use it from one thread only."""

    def __init__(self, profiles: Sequence[GpuProfile], *, allow_time_slicing: bool) -> None:
        """`profiles` are GPUs that an autoscaler can start. Time-sliced GPUs count only if `allow_time_slicing` is true."""
        self._profiles = tuple(profiles)
        self._allow_time_slicing = allow_time_slicing
        self._nodes: dict[str, NodeRecord] = {}
        self._problem: str | None = None
        self._asked_for: frozenset[str] = frozenset()
        self._deleted = Tombstones()
        self._inventory = self._snapshot()

    @property
    def inventory(self) -> Inventory:
        """The present nodes and GPUs. It is the same object until a node changes."""
        return self._inventory

    @property
    def asked_for(self) -> frozenset[str]:
        """Extended resources that jobs have asked for so far."""
        return self._asked_for | self._inventory.asked_for

    def __len__(self) -> int:
        return len(self._nodes)

    def put(self, node: NodeRecord) -> bool:
        """Store a node; returns True if the GPUs that jobs have asked for have changed."""
        held = self._nodes.get(node.name)
        if held is not None and _version(node) < _version(held):
            return False
        if not self._deleted.allows(node.uid, _version(node)):
            return False
        if held is not None and held.uid == node.uid and node.same_as(held):
            self._nodes[node.name] = node
            return False
        return self._replace({**self._nodes, node.name: node}, [(held, node)])

    def remove(self, name: str, uid: str, version: int = 0) -> bool:
        """Remove a node, unless a new one of the same name has replaced it; returns the same as `put`.

        `version` is that of the watch's report; 0 if there is none.
        """
        if version:
            self._deleted.add(uid, version)
        held = self._nodes.get(name)
        if held is None or held.uid != uid:
            return False
        return self._replace({key: node for key, node in self._nodes.items() if key != name}, [(held, None)])

    def replace(self, nodes: Iterable[NodeRecord], version: int) -> bool:
        """Replace all nodes by a full LIST at `version`; returns the same as `put`.

        Nodes stay if they are newer than the list, and deleted ones do not come back.
        """
        listed = {node.name: node for node in nodes if self._deleted.allows(node.uid, _version(node))}
        for name, held in self._nodes.items():
            if _version(held) > (_version(listed[name]) if name in listed else version):
                listed[name] = held
        names = sorted({*listed, *self._nodes})
        changes = [(self._nodes.get(name), listed.get(name)) for name in names]
        self._problem = None
        return self._replace(listed, changes)

    def fail(self, problem: str) -> bool:
        """Record that nodes cannot be read, and why; returns True if that is new."""
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
    """Resource versions of one kind are comparable numbers, as Kubernetes 1.35 documents."""
    return int(node.resource_version)
