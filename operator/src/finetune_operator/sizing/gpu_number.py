"""Chooses the number of GPUs of a job that names only the largest one: the cheapest on which the job fits.

One GPU, or one pod of GPUs, comes first. More GPUs hold a part of the frozen weights each, so a job may fit several small
GPUs and no single one. They exchange weights, which takes time, so they normally cost more.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Protocol

from finetune_operator.api.plan import Choice
from finetune_operator.api.quantities import binary_size
from finetune_operator.sizing.cost.prices import Cost, CostSettings, money
from finetune_operator.sizing.cost.work import Rows
from finetune_operator.sizing.decision import Feasible, Infeasible
from finetune_operator.sizing.decision_forecast import forecast_of
from finetune_operator.sizing.gpus.gpu import Offer
from finetune_operator.sizing.gpus.offers import eligible
from finetune_operator.sizing.layout import allowed_numbers, choose_layout, places, with_gpus
from finetune_operator.sizing.memory.terms import NotTracedError
from finetune_operator.sizing.request import SizingRequest

TIE = Decimal("0.01")
"""Share by which more GPUs must cost less. The forecast knows nothing finer."""
_NAMED = 2
"""Other numbers that a reason names."""


class Decide(Protocol):
    """Decides about one number of GPUs, as `sizing.decision.decide_training`."""

    def __call__(
        self, request: SizingRequest, offers: Sequence[Offer], /, *, brief: bool
    ) -> Feasible | Infeasible:
        """Decide about the number in `resources.gpus`. A `brief` rejection has no remedy."""


@dataclass(frozen=True)
class _Fit:
    """A number of GPUs on which the job fits, with the expected GPU hours and price; None if they are not known."""

    request: SizingRequest
    decision: Feasible
    hours: Decimal | None = None
    price: Decimal | None = None
    currency: str = ""

    @property
    def gpus(self) -> int:
        return self.request.spec.resources.gpus

    def text(self, *, priced: bool) -> str:
        """The price or the GPU hours, with the product on which they are expected."""
        price = f"{money(round(self.price or Decimal(), 2))} {self.currency}"
        return f"{price if priced else f'{self.hours:.3g} GPU hours'} on {self.decision.gpu.product}"


def possible_numbers(request: SizingRequest, offers: Sequence[Offer]) -> tuple[int, ...]:
    """Return the numbers of GPUs, the smallest first, that `offers` have a place for; that of the spec if it has no maximum.

    They are those of one pod, or of whole pods if the spec has the GPUs of a pod. None exceeds the rows of a step. GPUs that
    pods share count as one. The smallest number is always there, so that it can be rejected.
    """
    spec, rules = request.spec, request.node_rules
    if spec.resources.maximum_gpus is None:
        return (spec.resources.gpus,)
    whole = [offer for offer in offers if offer.sharing == "None" and eligible(offer, rules) is None]
    first, *more = allowed_numbers(spec)
    layouts = {number: choose_layout(with_gpus(spec, number).resources, whole) for number in more}
    possible = [
        number for number, layout in layouts.items() if places(whole, layout.per_node) >= layout.nodes
    ]
    return (first, *possible)


def decide_number(
    request: SizingRequest,
    numbers: Sequence[int],
    offers: Sequence[Offer],
    decide: Decide,
    rows: Rows | None,
    cost: CostSettings,
) -> tuple[SizingRequest, Feasible | Infeasible]:
    """Decide about a job; return the request with the number of GPUs that counts, and the decision about it.

    `decide` decides about the number that a request has in `resources.gpus`. If the request has a maximum, each of `numbers`
    (`possible_numbers`) is tried, but more than the first one only on `offers` on which that does not fit with margin. Fits
    with margin come before those without it. Among them, the cheapest counts: by price if all have one, else by GPU hours, and
    else, as before `rows` are known, the fewest GPUs.

    A job that fits no number is rejected with the one that lacks the least memory. Raises NotTracedError if `decide` does for
    each number.
    """
    if request.spec.resources.maximum_gpus is None:
        return request, decide(request, offers, brief=False)
    found = list(_decisions(request, numbers, offers, decide))
    fits = [_fit(each, made, rows, cost) for each, made in found if isinstance(made, Feasible)]
    if not fits:
        nearest, _ = min(found, key=lambda pair: _lacking(pair[1]))
        return nearest, decide(nearest, offers, brief=False)
    compared = [fit for fit in fits if not fit.decision.borderline] or fits
    priced = all(fit.price is not None for fit in compared)
    chosen = _cheapest(compared, priced=priced)
    lacking = [(each, made) for each, made in found if all(each is not fit.request for fit in compared)]
    reason = "; ".join((*_shortages(chosen, lacking), _comparison(chosen, compared, priced=priced)))
    decision = chosen.decision
    return chosen.request, replace(
        decision,
        choices=(*decision.choices, Choice("gpus", str(chosen.gpus), reason)),
        offers=_cheap_offers(chosen, compared),
    )


def _decisions(
    request: SizingRequest, numbers: Sequence[int], offers: Sequence[Offer], decide: Decide
) -> Iterator[tuple[SizingRequest, Feasible | Infeasible]]:
    """Yield each number with its decision, but for those of which the trace tells nothing.

    More GPUs than the first number cost more where that fits. So they are tried without such offers: a replica on each of
    several large GPUs would otherwise hide that several small ones can share the weights.
    """
    unknown: NotTracedError | None = None
    known = False
    left = offers
    for gpus in numbers:
        if gpus != numbers[0] and offers and not left:
            break
        tried = _with_gpus(request, gpus)
        try:
            decision = decide(tried, left, brief=True)
        except NotTracedError as error:
            unknown = error
            continue
        known = True
        yield tried, decision
        if gpus == numbers[0] and isinstance(decision, Feasible) and not decision.borderline:
            left = _without(offers, decision.offers)
    if unknown is not None and not known:
        raise unknown


def _with_gpus(request: SizingRequest, gpus: int) -> SizingRequest:
    return replace(request, spec=with_gpus(request.spec, gpus))


def _fit(request: SizingRequest, decision: Feasible, rows: Rows | None, cost: CostSettings) -> _Fit:
    """Estimate what a run costs that fits."""
    found = forecast_of(request, decision, rows, cost)
    if isinstance(found.duration, str):
        return _Fit(request, decision)
    hours = Decimal(found.duration.gpu_hours(decision.layout.gpus).expected)
    if not isinstance(found.cost, Cost):
        return _Fit(request, decision, hours)
    return _Fit(request, decision, hours, found.cost.expected, found.cost.currency)


def _cheapest(fits: Sequence[_Fit], *, priced: bool) -> _Fit:
    """Return the fit with the fewest GPUs among those that cost as much as the cheapest one, or hardly more."""
    costs = [(fit, fit.price if priced else fit.hours) for fit in fits]
    known = [(fit, cost) for fit, cost in costs if cost is not None]
    if len(known) < len(fits):
        return min(fits, key=lambda fit: fit.gpus)
    limit = min(cost for _, cost in known) * (1 + TIE)
    return min((fit for fit, cost in known if cost <= limit), key=lambda fit: fit.gpus)


def _cheap_offers(chosen: _Fit, fits: Sequence[_Fit]) -> tuple[Offer, ...]:
    """Return the offers of `chosen` without those on which fewer GPUs would do, if the others have a place for all pods."""
    layout = chosen.decision.layout
    enough = [offer for fit in fits if fit.gpus < chosen.gpus for offer in fit.decision.offers]
    left = _without(chosen.decision.offers, enough)
    return left if places(left, layout.per_node) >= layout.nodes else chosen.decision.offers


def _without(offers: Sequence[Offer], others: Sequence[Offer]) -> tuple[Offer, ...]:
    # All decisions are about the same objects, and a comparison of their labels would take long on a large cluster.
    left_out = set(map(id, others))
    return tuple(offer for offer in offers if id(offer) not in left_out)


def _lacking(decision: Feasible | Infeasible) -> tuple[bool, int]:
    """Order rejections: those of a GPU of known size by the memory that is missing, before the others."""
    usable = None if decision.gpu is None else decision.gpu.usable_bytes
    return usable is None, decision.estimate.device_bytes - (usable or 0)


def _comparison(chosen: _Fit, fits: Sequence[_Fit], *, priced: bool) -> str:
    """Say what the chosen number costs, and what the next ones would cost."""
    most = chosen.request.spec.resources.maximum_gpus
    if not priced and any(fit.hours is None for fit in fits):
        return f"the fewest of at most {most} on which the job fits"
    others = sorted(
        (fit for fit in fits if fit is not chosen),
        key=lambda fit: (fit.price if priced else fit.hours) or Decimal(),
    )
    named = [f"{_gpus(fit.gpus)}: {fit.text(priced=priced)}" for fit in others[:_NAMED]]
    against = f" ({', '.join(named)})" if named else ""
    return f"the cheapest of at most {most} on which the job fits: {chosen.text(priced=priced)}{against}"


def _shortages(chosen: _Fit, lacking: Sequence[tuple[SizingRequest, Feasible | Infeasible]]) -> Iterator[str]:
    """Yield what the next smaller number of GPUs lacks, if it does not fit as well as `chosen` for its memory."""
    for request, decision in reversed(lacking):
        gpus, gpu, estimate = request.spec.resources.gpus, decision.gpu, decision.estimate
        usable = None if gpu is None else gpu.usable_bytes
        if gpu is None or usable is None or gpus > chosen.gpus or estimate.high_bytes <= usable:
            continue
        exceeds = estimate.device_bytes > usable
        size = binary_size(estimate.device_bytes if exceeds else estimate.high_bytes)
        need = f"would {'need' if exceeds else 'perhaps need'} {size}{'' if gpus == 1 else ' each'}"
        yield f"{_gpus(gpus)} {need}, but {gpu.product} has {binary_size(usable)}"
        return


def _gpus(number: int) -> str:
    return f"{number} GPU{'' if number == 1 else 's'}"
