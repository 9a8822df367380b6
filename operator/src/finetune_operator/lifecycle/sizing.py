"""Whether TRAIN can run, as lifecycle needs to know it: from the model's config, the data, the GPUs and the volumes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from finetune_operator.api.plan import Device, Plan
from finetune_operator.api.reasons import Reason
from finetune_operator.api.spec import FineTuneJobSpec
from finetune_operator.api.stages import Stage
from finetune_operator.observed.inventory import Inventory
from finetune_operator.settings import Settings
from finetune_operator.sizing.decision import Feasible, Infeasible, SizingRequest
from finetune_operator.sizing.gpus.affinity import node_affinity
from finetune_operator.sizing.gpus.gpu import Offer, State
from finetune_operator.sizing.ladder import training_plan
from finetune_operator.sizing.memory.shape import ModelShape, ShapeUnknownError, model_shape
from finetune_operator.sizing.planning import make_plan
from finetune_operator.status import reporting
from finetune_operator.status.draft import StatusDraft

MAXIMUM_PRODUCTS = 32
_UNAVAILABLE: dict[State, str] = {
    "Cordoned": "cordoned",
    "NotReady": "not ready",
    "Provisioning": "still coming up",
}


@dataclass(frozen=True)
class Hold:
    """Nothing there is would do. Not the end: decided again whenever nodes, volumes or the catalogue change."""

    reason: Reason
    message: str


@dataclass(frozen=True)
class Doomed:
    """No cluster would do."""

    reason: Reason
    message: str


@dataclass(frozen=True)
class Sized:
    """TRAIN fits. `plan` are the values that it runs with, `shown` is what `status.plan` shows of them.

    `affinity` is the value of nodeAffinity that keeps TRAIN to the GPUs of `offers`; `digest` is another one whenever
    the plan or the affinity is.
    """

    plan: Plan
    shown: dict[str, Any]
    offers: tuple[Offer, ...]
    affinity: dict[str, Any]
    digest: str


def assess(
    spec: FineTuneJobSpec, draft: StatusDraft, inventory: Inventory, settings: Settings
) -> Sized | Hold | Doomed | None:
    """What is known of TRAIN's chances; None after it, and before the model's config is known."""
    if draft.stage is Stage.MERGE:
        return None
    config = draft.config
    if config is None:
        if draft.stage is Stage.PREPARE:
            return None
        return Doomed(
            Reason.MODEL_SIZE_UNKNOWN,
            "PREPARE must tell the model's config.json, found none in its result; use a trainer image of this operator's "
            "version and create the job again",
        )
    try:
        shape = model_shape(config)
    except ShapeUnknownError as error:
        return Doomed(Reason.MODEL_SIZE_UNKNOWN, str(error))
    return size_training(
        spec=spec,
        shape=shape,
        longest=draft.longest_example if draft.stage is Stage.TRAIN else None,
        kept=draft.plan if draft.training_begun else {},
        inventory=inventory,
        settings=settings,
    )


def shape_of(draft: StatusDraft) -> ModelShape | None:
    """The model's shape; None where it is not known, or not to be known."""
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
    shape: ModelShape,
    longest: int | None,
    kept: Mapping[str, Any],
    inventory: Inventory,
    settings: Settings,
) -> Sized | Hold:
    """Where TRAIN fits and with which values.

    `longest` is the longest row in tokens, None while PREPARE has not told it: then only what fits with no data at all
    is held. `kept` is `status.plan` where an earlier attempt of TRAIN has used it and may have left a checkpoint of
    that many steps; empty where everything open may still be chosen.
    """
    device = settings.trainer.device
    asked = _bind(spec, kept.get("training") or {}, device)
    decision = inventory.decide(
        SizingRequest(
            spec=asked,
            shape=shape,
            sequence_length=longest,
            stack=settings.stack,
            calibration=settings.fitted_calibration,
            device=device,
        )
    )
    if isinstance(decision, Infeasible):
        return _hold(decision, inventory)
    plan = make_plan(spec, device, decision.plan, decision.choices)
    affinity = node_affinity(decision.offers, inventory.offers(spec.resources.gpu_resource_name))
    shown = dict(kept) if kept else _shown(decision, plan)
    return Sized(plan, shown, decision.offers, affinity, _digest(plan, affinity))


def recorded_plan(spec: FineTuneJobSpec, recorded: Mapping[str, Any], device: Device) -> Plan:
    """The plan that `status.plan` records; one that needs little memory while it records none."""
    training = recorded.get("training")
    if not training:
        return make_plan(spec, device)
    decided = training_plan(
        spec.training,
        training["sequenceLength"],
        training["microBatchSize"],
        checkpointing=training["gradientCheckpointing"],
    )
    return make_plan(spec, device, decided)


def _bind(spec: FineTuneJobSpec, training: Mapping[str, Any], device: Device) -> FineTuneJobSpec:
    """`spec` with the micro-batch and checkpointing that `training` records, as if the user had given them."""
    if not training:
        return spec
    changes: dict[str, Any] = {"micro_batch_size": training["microBatchSize"]}
    if device == "cuda":
        # On a CPU nothing is recomputed, whatever the GPU that is asked for would need.
        changes["gradient_checkpointing"] = "Require" if training["gradientCheckpointing"] else "Forbid"
    return spec.model_copy(update={"training": spec.training.model_copy(update=changes)})


def _shown(decision: Feasible, plan: Plan) -> dict[str, Any]:
    training, estimate = decision.plan, decision.estimate
    return {
        "choices": reporting.choices(plan.choices),
        "training": {
            "microBatchSize": training.micro_batch_size,
            "gradientAccumulationSteps": training.gradient_accumulation,
            "gradientCheckpointing": training.gradient_checkpointing,
            "sequenceLength": training.sequence_length,
        },
        "gpu": {
            "product": decision.gpu.product[:256],
            **({} if decision.gpu.usable_bytes is None else {"usableBytes": decision.gpu.usable_bytes}),
            "offers": [product[:256] for product in products(decision.offers)[:MAXIMUM_PRODUCTS]],
        },
        "memory": reporting.estimated(estimate),
        "stack": estimate.stack[:256],
        "calibration": estimate.calibration[:256],
    }


def products(offers: Iterable[Offer]) -> list[str]:
    """The products of `offers`, smallest first, each once."""
    ordered = sorted(offers, key=lambda offer: (offer.gpu.usable_bytes or 0, offer.gpu.product))
    return list(dict.fromkeys(offer.gpu.product for offer in ordered))


def why_no_gpu(offers: Iterable[Offer], scheduler: str) -> str:
    """What a TRAIN pod waits for, for which the scheduler finds no node among those of `offers`."""
    offers = tuple(offers)
    named = products(offers)
    more = f" and {len(named) - 5} more" if len(named) > 5 else ""
    sentences = [f"waits for a free GPU on which the job fits: {', '.join(named[:5])}{more}"]
    for state, words in _UNAVAILABLE.items():
        nodes = sorted({offer.node for offer in offers if offer.node is not None and offer.state == state})
        if nodes:
            sentences.append(f"{', '.join(nodes[:3])}{' and others' if len(nodes) > 3 else ''}: {words}")
    profiles = sorted({offer.profile for offer in offers if offer.profile is not None})
    if profiles:
        sentences.append(f"the catalogue can start nodes of {', '.join(profiles[:3])}")
    return "; ".join([*sentences, scheduler])


def _hold(refused: Infeasible, inventory: Inventory) -> Hold:
    reason = Reason(refused.reason)
    if inventory.problem is None:
        return Hold(reason, refused.message)
    # What the nodes have is not known, so that nothing can be said of their size.
    return Hold(Reason.GPU_MEMORY_UNKNOWN, f"{inventory.problem}; {refused.message}")


def _digest(plan: Plan, affinity: Mapping[str, Any]) -> str:
    content = [plan.micro_batch_size, plan.gradient_checkpointing, affinity]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
