"""Whether a job fits, with which plan and on which GPUs; if not, what would have to change."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from finetune_operator.api.plan import Choice, Device
from finetune_operator.api.spec import FineTuneJobSpec
from finetune_operator.sizing import refusal
from finetune_operator.sizing.changes import Change, smallest_change
from finetune_operator.sizing.explanation import explain
from finetune_operator.sizing.gpus.gpu import Gpu, Offer
from finetune_operator.sizing.gpus.offers import eligible
from finetune_operator.sizing.gpus.products import PRODUCTS
from finetune_operator.sizing.ladder import Needs, Rung, rungs
from finetune_operator.sizing.memory.calibration import NO_CALIBRATION, Calibration
from finetune_operator.sizing.memory.estimate import estimate
from finetune_operator.sizing.memory.shape import ModelShape
from finetune_operator.sizing.memory.stack import DEFAULT_STACK, StackProfile
from finetune_operator.sizing.memory.terms import Estimate
from finetune_operator.sizing.memory.training_plan import TrainingPlan
from finetune_operator.sizing.support import unsupported

SHORTEST_LENGTH = 16
"""Tokens: the least that `training.maximumLength` may be. A job that does not fit with rows of it never will,
whatever its data, so that nothing needs to be downloaded to know."""

Reason = Literal["DoesNotFit", "GpuNotSupported", "GpuMemoryUnknown"]


@dataclass(frozen=True)
class Question:
    """A job whose GPU memory is in question.

    `sequence_length` is the padded length of the longest row in tokens, None before the data is known, and
    `length_reason` says where it comes from. `device` is what TRAIN runs on; on a CPU the job is sized all the same
    for the GPU that it asks for.
    """

    spec: FineTuneJobSpec
    shape: ModelShape
    sequence_length: int | None = None
    stack: StackProfile = DEFAULT_STACK
    calibration: Calibration = NO_CALIBRATION
    device: Device = "cuda"
    length_reason: str = "the longest row of the data in tokens"

    @property
    def length(self) -> int:
        """Tokens of a row in the estimate."""
        return SHORTEST_LENGTH if self.sequence_length is None else self.sequence_length

    def needs(self, gpu: Gpu | None) -> Needs:
        """Estimates plans of the job for `gpu`; without one, for any."""

        def estimated(plan: TrainingPlan) -> Estimate:
            return estimate(self.shape, plan, self.stack, self.calibration, gpu)

        return estimated

    def ladder(self, gpu: Gpu | None) -> tuple[Rung, ...]:
        """The ways to run the job with what each needs on `gpu`; without one, on any."""
        return rungs(self.spec.training, self.length, self.needs(gpu), self.spec.resources.right_size)


@dataclass(frozen=True)
class Fits:
    """The job fits. `plan` is what TRAIN uses, `choices` say why.

    `gpu` is the smallest GPU that fits and `estimate` what the job needs there. `offers` is every offer where the
    plan fits as well as it does on `gpu`: with the estimate's margin, or where `borderline` is set (no plan has the
    margin on any GPU) without it.
    """

    plan: TrainingPlan
    choices: tuple[Choice, ...]
    estimate: Estimate
    gpu: Gpu
    offers: tuple[Offer, ...]
    borderline: bool = False


@dataclass(frozen=True)
class Refused:
    """The job fits no GPU that there is or could be.

    `plan` is the way to run the job that needs the least, and `estimate` what it needs on `gpu`, the biggest GPU that
    may be used (None where none is known). `change` is the smallest change that fits there, `smallest` the smallest
    product on which the job fits as it is.
    """

    reason: Reason
    message: str
    estimate: Estimate
    plan: TrainingPlan
    gpu: Gpu | None = None
    change: Change | None = None
    smallest: Gpu | None = None


def decide_training(question: Question, offers: Sequence[Offer]) -> Fits | Refused:
    """Choose the plan and the GPUs of a job, or refuse it.

    The plan is the fastest one that the smallest sufficient GPU runs with margin: small GPUs are the cheapest and the
    most plentiful. A GPU that is cordoned, not ready or still coming up counts, since the job can wait for it.
    """
    resources, stack = question.spec.resources, question.stack
    if not offers:
        return _without_gpu(question, "DoesNotFit", refusal.no_offer(resources.gpu_resource_name))
    reasons = [(offer, eligible(offer, resources.node_selector, resources.tolerations)) for offer in offers]
    admitted = [offer for offer, why in reasons if why is None]
    if not admitted:
        excluded = [(offer, why) for offer, why in reasons if why is not None]
        message = refusal.not_eligible(resources.gpu_resource_name, excluded)
        return _without_gpu(question, "DoesNotFit", message)
    judged = [(offer, unsupported(offer.gpu, stack)) for offer in admitted]
    supported = sorted((offer for offer, why in judged if why is None), key=_size)
    left_out = [(offer, why) for offer, why in judged if why is not None]
    if not supported:
        best = max(left_out, key=lambda judgement: _size(judgement[0]))
        return _without_gpu(question, "GpuNotSupported", refusal.not_supported(best), best[0].gpu)
    known = [offer for offer in supported if offer.gpu.usable_bytes is not None]
    fits = _smallest_fit(question, known)
    if fits is not None:
        return fits
    unknown = [offer for offer in supported if offer.gpu.usable_bytes is None]
    if unknown:
        rung = question.ladder(unknown[0].gpu)[-1]
        message = refusal.memory_unknown(rung, unknown, known[-1] if known else None)
        return Refused(
            "GpuMemoryUnknown", message, rung.estimate, rung.plan, known[-1].gpu if known else None
        )
    return _too_big(question, known[-1], left_out)


def smallest_product(question: Question) -> Gpu | None:
    """The smallest product on which the job fits as it is and on which the image runs.

    With the estimate's margin if any product has it.
    """
    found: Gpu | None = None
    for gpu in PRODUCTS:
        if gpu.usable_bytes is None or unsupported(gpu, question.stack) is not None:
            continue
        rung = question.ladder(gpu)[-1]
        if rung.fits_with_margin(gpu.usable_bytes):
            return gpu
        if found is None and rung.fits(gpu.usable_bytes):
            found = gpu
    return found


def _smallest_fit(question: Question, known: Sequence[Offer]) -> Fits | None:
    """The plan for the smallest of `known` (in order of size) that fits, with margin before without."""
    ladders: dict[object, tuple[Gpu, tuple[Rung, ...]]] = {}
    for offer in known:
        gpu = offer.gpu
        kind = (gpu.usable_bytes, gpu.compute_capability)
        if kind in ladders:
            continue
        ladder = question.ladder(gpu)
        ladders[kind] = (gpu, ladder)
        for place, rung in enumerate(ladder):
            if rung.fits_with_margin(_size(offer)):
                return _fits(question, known, gpu, ladder, place, borderline=False)
    for gpu, ladder in ladders.values():
        if ladder[-1].fits(gpu.usable_bytes or 0):
            return _fits(question, known, gpu, ladder, len(ladder) - 1, borderline=True)
    return None


def _fits(
    question: Question,
    known: Sequence[Offer],
    gpu: Gpu,
    ladder: tuple[Rung, ...],
    place: int,
    *,
    borderline: bool,
) -> Fits:
    plan = ladder[place].plan
    needed: dict[object, Estimate] = {}
    where = []
    for offer in known:
        capability = offer.gpu.compute_capability
        if capability not in needed:
            needed[capability] = question.needs(offer.gpu)(plan)
        there = needed[capability]
        if (there.device_bytes if borderline else there.high_bytes) <= _size(offer):
            where.append(offer)
    length_reason = (
        "the shortest that a spec allows: the data is not known yet"
        if question.sequence_length is None
        else question.length_reason
    )
    choices = explain(
        question.spec,
        ladder,
        place,
        gpu,
        borderline=borderline,
        length_reason=length_reason,
        device=question.device,
    )
    if question.device == "cpu" and question.spec.training.gradient_checkpointing == "Auto":
        plan = replace(plan, gradient_checkpointing=False)
    return Fits(plan, choices, ladder[place].estimate, gpu, tuple(where), borderline)


def _without_gpu(question: Question, reason: Reason, found: str, gpu: Gpu | None = None) -> Refused:
    """Refuse a job that no GPU can serve, whatever its size; `found` says why, `gpu` is the best of them."""
    rung, smallest = question.ladder(gpu)[-1], smallest_product(question)
    message = refusal.bounded([found, refusal.needs(rung), refusal.product(smallest)])
    return Refused(reason, message, rung.estimate, rung.plan, gpu, smallest=smallest)


def _too_big(question: Question, biggest: Offer, left_out: Sequence[tuple[Offer, str]]) -> Refused:
    training, gpu = question.spec.training, biggest.gpu
    rung, smallest = question.ladder(gpu)[-1], smallest_product(question)
    change = smallest_change(
        training, question.length, question.needs(gpu), question.spec.resources.right_size, _size(biggest)
    )
    message = refusal.does_not_fit(rung, biggest, change, smallest, left_out)
    return Refused("DoesNotFit", message, rung.estimate, rung.plan, gpu, change, smallest)


def _size(offer: Offer) -> int:
    """Usable bytes; a GPU of unknown size counts as the smallest."""
    return offer.gpu.usable_bytes or 0
