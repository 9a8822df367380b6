"""Mutations of the operator, each of which the simulation must find."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any
from unittest.mock import patch

from finetune_operator.api.stages import Stage
from finetune_operator.cluster import informer
from finetune_operator.cluster.informer import Informer
from finetune_operator.cluster.resources import Cluster
from finetune_operator.cluster.store import Store
from finetune_operator.cluster.store_entry import Entry
from finetune_operator.cluster.tombstones import Tombstones
from finetune_operator.errors import ChildRejectedError, ConflictError
from finetune_operator.lifecycle import advance, decide
from finetune_operator.lifecycle.actions import Action, CreateJob
from finetune_operator.lifecycle.reconciliation import Reconciliation
from finetune_operator.lifecycle.steps import attempt, cleanup, lost_nodes, start
from finetune_operator.observed.observation import ChildJob, JobRecord, Key
from finetune_operator.observed.projection import project_child
from finetune_operator.runtime import controller
from finetune_operator.runtime.controller import Controller
from finetune_operator.status.draft import StatusDraft

FAULTS = 3
"""Number of faults in a life that looks for a mutant."""


@dataclass(frozen=True)
class Mutant:
    """One mutation, and the kinds of faults with which it shows."""

    applied: Callable[[], AbstractContextManager[Any]]
    kinds: tuple[str, ...]
    seeds: tuple[int, ...] = ()
    """Seeds that find it, with FAULTS faults each. A change of the operator or of the models may move them."""


def _no_obstacle(*_: object, **__: object) -> None:
    """Nothing is in the way of a start."""


def _forget_training(draft: StatusDraft, result: Any) -> StatusDraft:
    """After TRAIN, the job begins TRAIN again."""
    if result.train is not None and draft.stage is Stage.TRAIN:
        return draft.begin_attempt(draft.attempt + 1, draft.now)
    return advance.apply_success(draft, result)


async def _trust_the_store(trusting: Informer, key: Key, now: datetime) -> None:
    """Take what the watch has shown for a fresh read."""
    trusting._store._entries.at(key).last_read = now


_write_status = Cluster.write_status


async def _conflict_is_success(cluster: Cluster, job: JobRecord, status: Mapping[str, Any]) -> dict[str, Any]:
    """Take a conflict for a success."""
    try:
        return await _write_status(cluster, job, status)
    except ConflictError:
        metadata = {
            "namespace": job.namespace,
            "name": job.name,
            "uid": job.uid,
            "generation": job.generation,
            "resourceVersion": job.resource_version,
            "creationTimestamp": job.created.isoformat(),
        }
        return {"metadata": metadata, "spec": dict(job.spec), "status": dict(status)}


def _every_suspension_is_ours(body: Mapping[str, Any]) -> ChildJob | None:
    """Take the suspension of a Job by somebody else for the operator's own."""
    child = project_child(body)
    return None if child is None else replace(child, held=child.suspended)


def _starts(state: Reconciliation) -> bool:
    """Let the status of every start wait."""
    return any(isinstance(action, CreateJob) for action in state.actions)


async def _create_at_once(hasty: Controller, job: JobRecord, actions: Sequence[Action]) -> bool:
    """Send the claim and the Job of a new job together."""
    found = await asyncio.gather(*(hasty._ask(job, action) for action in actions), return_exceptions=True)
    hasty._queue.add(job.key)
    return any(isinstance(each, ChildRejectedError) for each in found)


def _delete_by_label() -> AbstractContextManager[Any]:
    """Take every object with the label for the operator's own."""
    stack = ExitStack()
    stack.enter_context(patch.object(lost_nodes, "made_by_operator", lambda *_: True))
    stack.enter_context(patch.object(controller, "may_delete", lambda *_: True))
    return stack


MUTANTS: dict[str, Mutant] = {
    "no wait for the pods of the predecessor": Mutant(
        lambda: patch.object(start, "find_obstacle", _no_obstacle),
        ("Job deleted", "pod evicted", "namesake", "node cut off", "status lost"),
        seeds=(0, 1, 2),
    ),
    "the success of TRAIN is forgotten": Mutant(
        lambda: patch.object(attempt, "apply_success", _forget_training),
        ("operator killed",),
        seeds=(0, 1, 3),
    ),
    "the store is taken for a fresh read": Mutant(
        lambda: patch.object(Informer, "refresh", _trust_the_store),
        ("label removed", "Job deleted", "lagging watch", "lost events"),
        seeds=(28, 41, 42),
    ),
    "a conflict is taken for a success": Mutant(
        lambda: patch.object(Cluster, "write_status", _conflict_is_success),
        ("409 because somebody else has written",),
        seeds=(0, 6, 9),
    ),
    "the workspace is not deleted": Mutant(
        lambda: patch.object(cleanup, "keeps_workspace", lambda *_, **__: True),
        ("operator killed",),
        seeds=(0, 1, 3),
    ),
    "a job is written after its deletion": Mutant(
        lambda: patch.object(Store, "has_job", lambda *_: True),
        ("FineTuneJob deleted", "slow answers", "latency"),
        seeds=(63, 71, 95),
    ),
    "a foreign suspension is undone": Mutant(
        lambda: patch.object(informer, "project_child", _every_suspension_is_ours),
        ("Job suspended by somebody else",),
        seeds=(1, 3, 5),
    ),
    "a hidden workspace is not looked for": Mutant(
        lambda: patch.object(cleanup, "_may_have_hidden_claim", lambda *_: False),
        ("label removed",),
        seeds=(12, 89, 119),
    ),
    "a late event brings an object back": Mutant(
        lambda: patch.object(Tombstones, "allows", lambda *_: True),
        ("repeated events", "reordered events", "FineTuneJob deleted"),
        seeds=(5, 13, 20),
    ),
    "a label makes an object the operator's own": Mutant(
        _delete_by_label,
        ("foreign objects with the label",),
        seeds=(0, 1, 2),
    ),
    "the Job of a new job does not wait for its claim": Mutant(
        lambda: patch.object(Controller, "_start", _create_at_once),
        ("namesake", "latency", "latency"),
        seeds=(146, 191, 364),
    ),
    "every start goes before its status": Mutant(
        lambda: patch.object(decide, "needs_no_record", _starts),
        ("operator killed at a write", "status lost", "Job deleted"),
        seeds=(14, 35, 36),
    ),
    "former Jobs are forgotten": Mutant(
        lambda: patch.object(Entry, "remember_job", lambda *_: None),
        ("Job deleted", "label removed", "label removed"),
        seeds=(125, 363, 370),
    ),
}
