"""The result of `finetune plan` as JSON (contract/plan.schema.json)."""

from __future__ import annotations

from typing import Any

from finetune_operator.api.plan import LearningRate
from finetune_operator.sizing.changes import Change
from finetune_operator.sizing.cost.forecast import shown_cost, shown_duration
from finetune_operator.sizing.cost.prices import CostSettings
from finetune_operator.sizing.cost.work import Rows
from finetune_operator.sizing.decision import Feasible, Infeasible, cross_check
from finetune_operator.sizing.decision_forecast import forecast_of
from finetune_operator.sizing.gpus.gpu import Gpu, Offer
from finetune_operator.sizing.learning_rate import warnings
from finetune_operator.sizing.memory.calibration import Calibration
from finetune_operator.sizing.memory.stack import StackProfile
from finetune_operator.sizing.memory.terms import Estimate
from finetune_operator.sizing.memory.training_plan import TrainingPlan
from finetune_operator.sizing.planning import learning_rate_choice
from finetune_operator.sizing.request import SizingRequest


def document(
    request: SizingRequest,
    decision: Feasible | Infeasible,
    learning_rate: LearningRate,
    rows: Rows | None = None,
    cost: CostSettings = CostSettings(),  # noqa: B008 -- it is immutable
    *,
    family: str = "",
) -> dict[str, Any]:
    """The decision as a document with sizes in bytes. For a rejected job, they describe the plan with the least memory.

    `rows` is the data, from which time and cost follow. `family` is the model type.
    """
    doubt = cross_check(request, decision)
    estimate, plan, gpu = decision.estimate, decision.plan, decision.gpu
    return {
        **(_fitting(decision, learning_rate) if isinstance(decision, Feasible) else _rejected(decision)),
        **_forecast(request, decision, rows, cost),
        "peakBytes": estimate.peak_bytes,
        "deviceBytes": estimate.device_bytes,
        "usableBytes": None if gpu is None else gpu.usable_bytes,
        "lowBytes": estimate.low_bytes,
        "highBytes": estimate.high_bytes,
        "bottleneck": estimate.bottleneck.value,
        "phases": {phase.value: size for phase, size in estimate.phases.items()},
        "terms": _terms(estimate),
        "chosen": {
            **_chosen(plan, request.spec.training.effective_batch_size),
            "learningRate": learning_rate.value,
        },
        "warnings": [*warnings(request.spec.training), *(() if doubt is None else (doubt,))],
        "gpu": None if gpu is None else _gpu(gpu),
        "model": _model(request, family),
        "stack": _stack(request.stack),
        "calibration": request.calibration.version,
    }


def unknown_model(
    message: str, stack: StackProfile, calibration: Calibration, *, refused: bool = False
) -> dict[str, Any]:
    """The document of a model that the trainer refuses, or whose memory cannot be computed."""
    nothing = ("peakBytes", "deviceBytes", "usableBytes", "lowBytes", "highBytes", "bottleneck")
    return {
        "fits": False,
        "verdict": "UnsupportedModel" if refused else "ModelSizeUnknown",
        "reasons": [message],
        **dict.fromkeys(nothing),
        "phases": {},
        "terms": [],
        "chosen": None,
        "choices": [],
        "warnings": [],
        "gpu": None,
        "offers": [],
        "change": None,
        "duration": None,
        "cost": None,
        "smallestGpu": None,
        "model": None,
        "stack": _stack(stack),
        "calibration": calibration.version,
    }


def _fitting(decision: Feasible, learning_rate: LearningRate) -> dict[str, Any]:
    choices = decision.choices
    if learning_rate.reason is not None:
        choices = (*choices, learning_rate_choice(learning_rate))
    return {
        "fits": True,
        "verdict": "Borderline" if decision.borderline else "Fits",
        "reasons": [f"{choice.name} {choice.value}: {choice.reason}" for choice in choices],
        "choices": [
            {"name": choice.name, "value": choice.value, "reason": choice.reason} for choice in choices
        ],
        "offers": [_offer(offer) for offer in decision.offers],
        "change": None,
        "smallestGpu": None,
    }


def _forecast(
    request: SizingRequest, decision: Feasible | Infeasible, rows: Rows | None, cost: CostSettings
) -> dict[str, Any]:
    """Estimated time and cost, or why one of them is not known; null for a rejected job."""
    if isinstance(decision, Infeasible):
        return {"duration": None, "cost": None}
    found = forecast_of(request, decision, rows, cost)
    gpus = decision.layout.gpus
    duration, price = found.duration, found.cost
    return {
        "duration": {"reason": duration} if isinstance(duration, str) else shown_duration(duration, gpus),
        "cost": {"reason": price} if isinstance(price, str) else shown_cost(price),
    }


def _rejected(decision: Infeasible) -> dict[str, Any]:
    smallest = decision.smallest
    return {
        "fits": False,
        "verdict": decision.reason,
        "reasons": [decision.message],
        "choices": [],
        "offers": [],
        "change": None if decision.change is None else _change(decision.change),
        "smallestGpu": None
        if smallest is None
        else {"product": smallest.product, "usableBytes": smallest.usable_bytes},
    }


def _terms(estimate: Estimate) -> list[dict[str, Any]]:
    return [
        {"name": term.name, "bytes": term.bytes, "phase": term.phase.value, "formula": term.formula}
        for term in estimate.terms
    ]


def _chosen(plan: TrainingPlan, effective_batch_size: int) -> dict[str, Any]:
    """The values of a plan. Several GPUs need not have equally many of the rows of a step."""
    return {
        "microBatchSize": plan.micro_batch_size,
        "gradientAccumulationSteps": plan.gradient_accumulation,
        "effectiveBatchSize": effective_batch_size,
        "gradientCheckpointing": plan.gradient_checkpointing,
        "optimizer": plan.optimizer,
        "weights": plan.weights,
        "sequenceLength": plan.sequence_length,
        "rank": plan.rank,
        "targetModules": plan.target_modules,
        "dropout": plan.dropout,
        "variant": plan.variant,
        **({} if plan.ranks == 1 else {"gpus": plan.ranks, "parallelism": plan.parallelism}),
    }


def _gpu(gpu: Gpu) -> dict[str, Any]:
    capability = gpu.compute_capability
    return {
        "product": gpu.product,
        "vendor": gpu.vendor,
        "usableBytes": gpu.usable_bytes,
        "computeCapability": None if capability is None else f"{capability[0]}.{capability[1]}",
        "source": gpu.source,
    }


def _offer(offer: Offer) -> dict[str, Any]:
    return {
        "product": offer.gpu.product,
        "node": offer.node,
        "profile": offer.profile,
        "count": offer.count,
        "state": offer.state,
        "zone": offer.zone,
    }


def _change(change: Change) -> dict[str, Any]:
    estimate = change.rung.estimate
    return {
        "settings": [{"path": setting.path, "value": setting.value} for setting in change.settings],
        "shortensData": change.shortens_data,
        "peakBytes": estimate.peak_bytes,
        "deviceBytes": estimate.device_bytes,
        "highBytes": estimate.high_bytes,
    }


def _model(request: SizingRequest, family: str) -> dict[str, Any]:
    shape, trace = request.shape, request.trace
    if shape is None:
        return {"family": family, "parameters": 0 if trace is None else trace.parameters, "layers": None}
    return {"family": shape.family, "parameters": shape.parameters, "layers": shape.layers}


def _stack(stack: StackProfile) -> str:
    return f"{stack.name} {stack.version}"
