"""Decides whether TRAIN can run on the GPUs of the cluster, and with which plan."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from finetune_operator.api.plan import (
    DEFAULT_OPTIMIZER,
    DEFAULT_WEIGHTS,
    Device,
    Optimizer,
    Plan,
)
from finetune_operator.api.pod_merge import node_rules
from finetune_operator.api.reasons import Reason
from finetune_operator.api.spec import FineTuneJobSpec
from finetune_operator.api.stages import Stage
from finetune_operator.contract.memory_trace import MemoryTrace
from finetune_operator.contract.run_spec import OPTIMIZER_SINCE, RANKS_SINCE
from finetune_operator.lifecycle.model_size import ModelSize, model_size
from finetune_operator.lifecycle.recorded_plan import (
    recorded_abilities,
    recorded_gpus,
    recorded_ladder,
    recorded_rate,
)
from finetune_operator.observed.inventory import Inventory
from finetune_operator.settings import Settings
from finetune_operator.sizing import decision as gpu_sizing
from finetune_operator.sizing.cost.forecast import shown_cost, shown_duration
from finetune_operator.sizing.cost.work import Rows, rows_of
from finetune_operator.sizing.decision_forecast import forecast_of
from finetune_operator.sizing.gpus.affinity import node_affinity
from finetune_operator.sizing.gpus.gpu import Offer, State
from finetune_operator.sizing.ladder import ABILITIES, OLDER_ABILITIES, Abilities
from finetune_operator.sizing.learning_rate import Wide, choose_learning_rate
from finetune_operator.sizing.memory.shape import (
    ModelRefusedError,
    ModelShape,
    ShapeUnknownError,
    model_shape,
)
from finetune_operator.sizing.memory.terms import NotTracedError
from finetune_operator.sizing.planning import frugal_rungs, make_plan, rate_text
from finetune_operator.sizing.request import SizingRequest
from finetune_operator.status import reporting
from finetune_operator.status.draft import StatusDraft

MAXIMUM_PRODUCTS = 32
UNSUPPORTED_MODEL = "UnsupportedModel"
"""The trainer's reason for a model that it refuses; its first pass and this one use the same list."""
_UNAVAILABLE: dict[State, str] = {
    "Cordoned": "cordoned",
    "NotReady": "not ready",
    "Provisioning": "still starting",
}


@dataclass(frozen=True)
class Blocked:
    """The stage cannot run on the present cluster. It is decided again when nodes, volumes or the chart's settings change."""

    reason: Reason
    message: str


@dataclass(frozen=True)
class Infeasible:
    """TRAIN cannot run on any cluster, so the job fails. A refused model has the trainer's reason."""

    reason: Reason | str
    message: str


@dataclass(frozen=True)
class Feasible:
    """TRAIN fits."""

    plan: Plan
    """The values that TRAIN runs with."""
    shown: dict[str, Any]
    """The content of `status.plan`."""
    offers: tuple[Offer, ...]
    """The GPUs on which TRAIN fits."""
    affinity: dict[str, Any]
    """The value of nodeAffinity that keeps TRAIN on these GPUs."""
    digest: str
    """Changes whenever the plan or the affinity changes."""


def assess_training(
    spec: FineTuneJobSpec, draft: StatusDraft, inventory: Inventory, settings: Settings
) -> Feasible | Blocked | Infeasible | None:
    """Decide whether TRAIN can run; None before the model's config is known, and after TRAIN."""
    if draft.stage is Stage.MERGE:
        return None
    config = draft.config
    if config is None:
        if draft.stage is Stage.PREPARE:
            return None
        return Infeasible(
            Reason.MODEL_SIZE_UNKNOWN,
            "PREPARE must report the model's config.json, but its result has none; use the trainer image of this "
            "operator's version and create the job again",
        )
    try:
        size = model_size(draft, config)
    except ModelRefusedError as error:
        return Infeasible(UNSUPPORTED_MODEL, str(error))
    except ShapeUnknownError as error:
        return Infeasible(Reason.MODEL_SIZE_UNKNOWN, str(error))
    return None if size is None else _assess_size(spec, draft, size, inventory, settings)


def _assess_size(
    spec: FineTuneJobSpec, draft: StatusDraft, size: ModelSize, inventory: Inventory, settings: Settings
) -> Feasible | Blocked | Infeasible:
    # PREPARE traces the longest row, before it fetches a weight.
    longest = None if size.trace is None else size.trace.length
    sized = partial(
        size_training,
        spec=spec,
        shape=size.shape,
        width=size.width,
        longest=draft.longest_example if draft.stage is Stage.TRAIN else longest,
        examples=draft.training_examples,
        kept=draft.plan if draft.training_begun else {},
        inventory=inventory,
        settings=settings,
        rows=rows_of(draft.dataset),
        trainer=_abilities(draft, settings.trainer.image),
    )
    try:
        return sized(trace=size.trace)
    except NotTracedError as error:
        # A trainer may report anything.
        return Infeasible(Reason.MODEL_SIZE_UNKNOWN, str(error)) if size.shape is None else sized()


def _abilities(draft: StatusDraft, image: str) -> Abilities:
    """What the trainer is known to be able to do. While PREPARE runs, shared weights must not look impossible."""
    able = ABILITIES if draft.speaks(OPTIMIZER_SINCE, image) else OLDER_ABILITIES
    return replace(able, shares_weights=draft.stage is Stage.PREPARE or draft.speaks(RANKS_SINCE, image))


def shape_of(draft: StatusDraft) -> ModelShape | None:
    """The model's shape; None if its config is not known yet or does not determine the shape."""
    config = draft.config
    if config is None:
        return None
    try:
        return model_shape(config)
    except ShapeUnknownError:
        return None


def size_training(
    *,
    spec: FineTuneJobSpec,
    shape: ModelShape | None,
    longest: int | None,
    examples: int | None = None,
    kept: Mapping[str, Any],
    inventory: Inventory,
    settings: Settings,
    rows: Rows | None = None,
    trainer: Abilities = ABILITIES,
    trace: MemoryTrace | None = None,
    width: Wide | None = None,
) -> Feasible | Blocked | Infeasible:
    """Find the GPUs on which TRAIN fits, and its plan. A model that cannot be shared out as asked is infeasible.

    `longest` is the longest row in tokens, and `examples` the number of training examples. They are None before PREPARE
    has reported them. Without it, TRAIN is blocked only if no GPU fits even the shortest rows. `kept` is `status.plan` if an
    earlier attempt of TRAIN has used it, because the workspace may hold a checkpoint of that plan. It is empty if every open
    value may still be chosen. `trainer` is what the trainer image is known to be able to do. `rows` is the data, from which
    time and cost follow. `trace` comes before the closed form of `shape`, which is None for an unknown family. `width` stands
    for it where the learning rate is chosen. Raises NotTracedError if neither tells the memory of a plan.
    """
    device = settings.trainer.device
    asked = _bind(spec, kept.get("training") or {}, device)
    request = SizingRequest(
        spec=asked,
        shape=shape,
        sequence_length=longest,
        stack=settings.stack,
        calibration=settings.fitted_calibration,
        device=device,
        rules=node_rules(settings.trainer.defaults, spec, Stage.TRAIN),
        trainer=recorded_abilities(kept["training"]) if kept.get("training") else trainer,
        trace=trace,
    )
    request, decision = inventory.decide_number(request, rows, settings.cost)
    if isinstance(decision, gpu_sizing.Infeasible):
        return _blocked(decision, inventory)
    rate = recorded_rate(kept) or choose_learning_rate(spec.training, shape or width, examples)
    # A kept plan was decided with a ladder, and the values that it binds leave none to the new decision.
    ladder = recorded_ladder(kept) if kept else frugal_rungs(decision.frugal)
    plan = make_plan(spec, device, decision.plan, decision.choices, rate, ladder, decision.layout)
    doubt = gpu_sizing.cross_check(request, decision)
    if doubt is not None:
        plan = replace(plan, warnings=(*plan.warnings, doubt))
    affinity = node_affinity(decision.offers, inventory.offers(spec.resources.gpu_resource_name))
    shown = dict(kept) if kept else {**_shown(decision, plan), **_forecast(request, decision, rows, settings)}
    return Feasible(plan, shown, decision.offers, affinity, plan_digest(plan, affinity, device))


def plan_optimizers(plan: Plan) -> frozenset[Optimizer]:
    """Return the optimizers that TRAIN may take: that of the plan, and those of its ladder."""
    return frozenset((plan.optimizer, *(rung.optimizer for rung in plan.ladder)))


def _bind(spec: FineTuneJobSpec, training: Mapping[str, Any], device: Device) -> FineTuneJobSpec:
    """`spec` with the values that `training` records, as if the user had given them."""
    if not training:
        return spec
    resources = spec.resources
    if "gpusPerNode" in training:
        # The workspace may suit one pod only.
        resources = resources.model_copy(update={"gpus_per_node": training["gpusPerNode"]})
    changes: dict[str, Any] = {"micro_batch_size": training["microBatchSize"]}
    if spec.resources.maximum_gpus is not None:
        # Its number was chosen.
        resources = resources.model_copy(
            update={"gpus": recorded_gpus(spec, {"training": training}), "maximum_gpus": None}
        )
    if resources.gpus > 1:
        changes["parallelism"] = reporting.read_parallelism(training)
    if device == "cuda":
        # On a CPU nothing is recomputed, whatever the requested GPU would need.
        changes["gradient_checkpointing"] = "Require" if training["gradientCheckpointing"] else "Forbid"
    training_spec = spec.training.model_copy(update=changes)
    return spec.model_copy(update={"training": training_spec, "resources": resources})


def _shown(decision: gpu_sizing.Feasible, plan: Plan) -> dict[str, Any]:
    training, estimate = decision.plan, decision.estimate
    return {
        **reporting.plan(plan),
        "training": {
            "microBatchSize": training.micro_batch_size,
            "gradientAccumulationSteps": training.gradient_accumulation,
            "gradientCheckpointing": training.gradient_checkpointing,
            "optimizer": training.optimizer,
            "weights": training.weights,
            "sequenceLength": training.sequence_length,
            "learningRate": rate_text(plan.learning_rate.value),
            **reporting.layout(plan.layout),
        },
        **({"ladder": reporting.ladder(plan.ladder)} if plan.ladder else {}),
        "gpu": {
            "product": decision.gpu.product[:256],
            **({} if decision.gpu.usable_bytes is None else {"usableBytes": decision.gpu.usable_bytes}),
            "offers": [product[:256] for product in products(decision.offers)[:MAXIMUM_PRODUCTS]],
        },
        "memory": reporting.estimated(estimate),
        "stack": estimate.stack[:256],
        "calibration": estimate.calibration[:256],
    }


def _forecast(
    request: SizingRequest, decision: gpu_sizing.Feasible, rows: Rows | None, settings: Settings
) -> dict[str, Any]:
    """The estimated time and cost of TRAIN, or why one of them is not known."""
    if rows is None:
        return {}
    found = forecast_of(request, decision, rows, settings.cost)
    duration, cost = found.duration, found.cost
    return {
        "duration": {"reason": duration[:1024]}
        if isinstance(duration, str)
        else shown_duration(duration, decision.layout.gpus),
        "cost": {"reason": cost[:1024]} if isinstance(cost, str) else shown_cost(cost),
    }


def products(offers: Iterable[Offer]) -> list[str]:
    """The products of `offers`, smallest first, each once."""
    ordered = sorted(offers, key=lambda offer: (offer.gpu.usable_bytes or 0, offer.gpu.product))
    return list(dict.fromkeys(offer.gpu.product for offer in ordered))


def why_no_gpu(offers: Iterable[Offer], scheduler: str) -> str:
    """Explain why a TRAIN pod waits: the scheduler finds no free node among those of `offers`."""
    offers = tuple(offers)
    named = products(offers)
    more = f" and {len(named) - 5} more" if len(named) > 5 else ""
    sentences = [f"TRAIN waits for a free GPU on which the job fits: {', '.join(named[:5])}{more}"]
    for state, text in _UNAVAILABLE.items():
        nodes = sorted({offer.node for offer in offers if offer.node is not None and offer.state == state})
        if nodes:
            sentences.append(f"{', '.join(nodes[:3])}{' and others' if len(nodes) > 3 else ''}: {text}")
    profiles = sorted({offer.profile for offer in offers if offer.profile is not None})
    if profiles:
        sentences.append(f"an autoscaler can start nodes of gpuProfiles {', '.join(profiles[:3])}")
    return "; ".join([*sentences, scheduler])


def _blocked(found: gpu_sizing.Infeasible, inventory: Inventory) -> Blocked | Infeasible:
    if found.reason == UNSUPPORTED_MODEL:
        return Infeasible(UNSUPPORTED_MODEL, found.message)
    reason = Reason(found.reason)
    if inventory.problem is None:
        return Blocked(reason, found.message)
    # The nodes cannot be read, so the sizes of their GPUs are unknown.
    return Blocked(Reason.GPU_MEMORY_UNKNOWN, f"{inventory.problem}; {found.message}")


def plan_digest(plan: Plan, affinity: Mapping[str, Any], device: Device) -> str:
    """Return what a Job was made for: it changes with the plan and the affinity."""
    content: list[Any] = [plan.micro_batch_size, plan.gradient_checkpointing, affinity]
    if device == "cuda" and (plan.optimizer, plan.weights) != (DEFAULT_OPTIMIZER, DEFAULT_WEIGHTS):
        # Otherwise a Job that an earlier operator made would be replaced.
        content += [plan.optimizer, plan.weights]
    if plan.layout.gpus > 1:
        content += [plan.layout.nodes, plan.layout.per_node]
    if plan.layout.parallelism != "DataParallel":
        content.append(plan.layout.parallelism)
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
