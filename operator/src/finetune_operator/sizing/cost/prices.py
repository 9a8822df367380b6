"""The administrator's price list, and what a run costs by it. Amounts are decimal, as money is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import ROUND_HALF_EVEN, Decimal, InvalidOperation
from functools import cached_property
from typing import Annotated, Any, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from pydantic.alias_generators import to_camel

from finetune_operator.api.showback import MAXIMUM_LABELS, ShowbackKey, check_distinct
from finetune_operator.sizing.cost.duration import Duration
from finetune_operator.sizing.cost.exchange import GUESSED_LINKS, Links
from finetune_operator.sizing.cost.speeds import MeasuredSpeed, same_product
from finetune_operator.sizing.gpus.gpu import Offer
from finetune_operator.sizing.gpus.profiles import LabelKey, LabelValue

MAXIMUM_ENTRIES = 256
_SMALLEST = Decimal("0.000001")
_HOUR = 3600


class CostError(ValueError):
    """A `cost` value of the chart that cannot be used. The message names each bad member."""


def _decimal(value: Any) -> Any:
    """Read a price from a number or a text without the digits that binary floats add."""
    try:
        return Decimal("" if isinstance(value, bool) else str(value))
    except InvalidOperation:
        raise ValueError(f"must be a price per GPU hour, such as 0.71, found {value!r:.40}") from None


Amount = Annotated[
    Decimal, BeforeValidator(_decimal), Field(ge=0, le=1_000_000_000, allow_inf_nan=False, decimal_places=6)
]


class _Value(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="forbid", frozen=True)


class GpuPrice(_Value):
    """The price of one GPU for an hour. It applies to a product, to nodes with these labels, or to both."""

    product: Annotated[str, Field(max_length=256)] = ""
    node_labels: Annotated[dict[LabelKey, LabelValue], Field(max_length=8)] = {}
    per_gpu_hour: Amount

    def applies(self, product: str, labels: Mapping[str, str]) -> bool:
        """True if a GPU of this product on a node with these labels has this price."""
        if self.product and not same_product(self.product, product):
            return False
        return all(labels.get(key) == value for key, value in self.node_labels.items())


class CostSettings(_Value):
    """The chart's `cost`: one currency, prices of which the first that applies counts, speeds, links and showback labels."""

    currency: Annotated[str, Field(pattern=r"^([A-Z]{3})?$")] = ""
    prices: Annotated[tuple[GpuPrice, ...], Field(max_length=MAXIMUM_ENTRIES)] = ()
    speeds: Annotated[tuple[MeasuredSpeed, ...], Field(max_length=MAXIMUM_ENTRIES)] = ()
    links: Links = GUESSED_LINKS
    labels: Annotated[tuple[ShowbackKey, ...], Field(max_length=MAXIMUM_LABELS)] = ()

    @model_validator(mode="after")
    def _has_a_currency(self) -> Self:
        if self.prices and not self.currency:
            raise ValueError(
                "cost.currency must be the ISO 4217 code of cost.prices, such as EUR, found none"
            )
        check_distinct(self.labels)
        return self

    @cached_property
    def label_keys(self) -> tuple[str, ...]:
        """The keys of the node labels on which prices depend."""
        return tuple(sorted({key for entry in self.prices for key in entry.node_labels}))

    def price(self, product: str, labels: Mapping[str, str]) -> GpuPrice | None:
        """The first price that applies; None if there is none."""
        return next((entry for entry in self.prices if entry.applies(product, labels)), None)


def parse_cost(document: Any) -> CostSettings:
    """Read the chart's `cost`. Raises CostError naming each bad member."""
    try:
        return CostSettings.model_validate(document)
    except ValidationError as error:
        details = [
            f"cost.{'.'.join(str(step) for step in detail['loc'])}: {detail['msg'].removeprefix('Value error, ')}"
            for detail in error.errors(include_url=False, include_context=False, include_input=False)[:5]
        ]
        raise CostError("; ".join(details)) from error


@dataclass(frozen=True)
class Cost:
    """The estimated price of a run, and the prices with which it was computed."""

    low: Decimal
    expected: Decimal
    high: Decimal
    currency: str
    reason: str


def amount_of(gpu_seconds: int, per_gpu_hour: Decimal) -> Decimal:
    """The price of so many GPU seconds, rounded to millionths of the currency."""
    return (gpu_seconds * per_gpu_hour / _HOUR).quantize(_SMALLEST, ROUND_HALF_EVEN)


def money(amount: Decimal) -> str:
    """An amount as text without an exponent and without needless zeros."""
    text = f"{amount:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def estimate_cost(
    durations: Sequence[tuple[Offer, Duration]], gpus: int, settings: CostSettings, planned: str
) -> Cost | str:
    """What a run costs on any of these GPUs, or why that is not known.

    The expected cost is that of the cheapest offer of the product `planned`. The bounds are those of all offers, because
    the run may get any of them. If some have no price, the reason says so.
    """
    if not settings.prices:
        return "the chart's cost.prices is empty"
    found: list[tuple[Offer, Duration, Decimal]] = []
    missing: dict[str, None] = {}
    for offer, duration in durations:
        price = settings.price(offer.gpu.product, offer.labels)
        if price is None:
            missing[offer.gpu.product] = None
        else:
            found.append((offer, duration, price.per_gpu_hour))
    if not found:
        return f"the chart's cost.prices has no price for {_names(missing) or 'these GPUs'}"
    lows = [_spent(duration.seconds.low, gpus, price) for _, duration, price in found]
    highs = [_spent(duration.seconds.high, gpus, price) for _, duration, price in found]
    of_planned = [entry for entry in found if entry[0].gpu.product == planned] or found
    expected = min(_spent(duration.seconds.expected, gpus, price) for _, duration, price in of_planned)
    used = dict.fromkeys(
        f"{money(price)} {settings.currency} per GPU hour of {offer.gpu.product}" for offer, _, price in found
    )
    reason = _names(used)
    if missing:
        reason += f"; no price for {_names(missing)}"
    return Cost(min(lows), expected, max(highs), settings.currency, reason)


def _spent(seconds: float, gpus: int, price: Decimal) -> Decimal:
    return amount_of(round(seconds * gpus), price)


def _names(names: Iterable[str]) -> str:
    listed = list(names)
    more = f" and {len(listed) - 4} more" if len(listed) > 4 else ""
    return ", ".join(listed[:4]) + more
