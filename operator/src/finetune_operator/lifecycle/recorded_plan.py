"""Reads the plan that `status.plan` records, which an earlier attempt or an earlier operator may have made."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from finetune_operator.api.plan import (
    DEFAULT_OPTIMIZER,
    DEFAULT_WEIGHTS,
    Device,
    Layout,
    LearningRate,
    Optimizer,
    Plan,
    Rung,
    Weights,
)
from finetune_operator.api.spec import FineTuneJobSpec
from finetune_operator.sizing.ladder import ABILITIES, Abilities, training_plan
from finetune_operator.sizing.planning import make_plan
from finetune_operator.status import reporting


def recorded_plan(spec: FineTuneJobSpec, recorded: Mapping[str, Any], device: Device) -> Plan:
    """The plan that `status.plan` records; if it records none, a plan that needs little memory."""
    training = recorded.get("training")
    if not training:
        return make_plan(spec, device)
    layout = recorded_layout(spec, recorded)
    decided = training_plan(
        spec.training,
        training["sequenceLength"],
        training["microBatchSize"],
        checkpointing=training["gradientCheckpointing"],
        layout=layout,
    )
    return make_plan(spec, device, decided, learning_rate=recorded_rate(recorded), layout=layout)


def recorded_layout(spec: FineTuneJobSpec, recorded: Mapping[str, Any]) -> Layout:
    """The layout that `status.plan` records; that of a single pod if it records none."""
    gpus = recorded_gpus(spec, recorded)
    training = recorded.get("training") or {}
    per_node = training.get("gpusPerNode", gpus)
    return Layout(max(1, gpus // per_node), per_node, reporting.read_parallelism(training))


def recorded_gpus(spec: FineTuneJobSpec, recorded: Mapping[str, Any]) -> int:
    """The number of GPUs of the spec; if it names only a maximum, the one that `status.plan` records, or 1."""
    if spec.resources.maximum_gpus is None:
        return spec.resources.gpus
    training = recorded.get("training") or {}
    return int(training.get("nodes", 1) * training.get("gpusPerNode", 1))


def recorded_rate(recorded: Mapping[str, Any]) -> LearningRate | None:
    """Return the learning rate that `status.plan` records, with its reason; None if it records none.

    A checkpoint belongs to the rate with which it was made, so a later version's rule does not change it.
    """
    text = (recorded.get("training") or {}).get("learningRate")
    if text is None:
        return None
    reasons = (entry["reason"] for entry in recorded.get("choices") or () if entry["name"] == "learningRate")
    return LearningRate(float(text), next(reasons, None))


def recorded_optimizers(plan: Mapping[str, Any]) -> frozenset[Optimizer]:
    """Return those of `status.plan`; all of them if it has no plan for TRAIN yet."""
    if not plan.get("training"):
        return frozenset(ABILITIES.optimizers)
    ladder = plan.get("ladder") or ()
    return frozenset(_recorded_optimizer(rung) for rung in (plan["training"], *ladder))


def recorded_ladder(plan: Mapping[str, Any]) -> tuple[Rung, ...]:
    """Return the rungs that `status.plan` records."""
    return tuple(
        Rung(
            entry["microBatchSize"],
            entry["gradientCheckpointing"],
            _recorded_optimizer(entry),
            _recorded_weights(entry),
        )
        for entry in plan.get("ladder") or ()
    )


def recorded_abilities(training: Mapping[str, Any]) -> Abilities:
    """Return what the plan of an earlier attempt has chosen, as the only choice."""
    return Abilities((_recorded_optimizer(training),), "", (_recorded_weights(training),))


def _recorded_optimizer(rung: Mapping[str, Any]) -> Optimizer:
    """Return the optimizer that a rung of `status.plan` records. That of an earlier operator records none."""
    recorded = rung.get("optimizer")
    return next((known for known in ABILITIES.optimizers if known == recorded), DEFAULT_OPTIMIZER)


def _recorded_weights(rung: Mapping[str, Any]) -> Weights:
    """Return the form of the weights that a rung of `status.plan` records."""
    recorded = rung.get("weights")
    return next((known for known in ABILITIES.weights if known == recorded), DEFAULT_WEIGHTS)
