"""The share of a GPU's published speed that training reaches: measured, or a stated guess."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic.alias_generators import to_camel

from finetune_operator.sizing.cost.rates import CPU, UNLISTED, Rates, published_rates
from finetune_operator.sizing.gpus.products import find_product

Source = Literal["Measured", "Published", "Guessed"]
FASTEST, TYPICAL, SLOWEST = 0.75, 0.4, 0.15
"""Shares of the published speed, without a measured run.

NVIDIA publishes 12,473 tokens a second for LoRA of Llama 3.1 8B on an H100 (NeMo AutoModel): 0.40 of 989 TFLOPS with 4
operations for each parameter and token. Matrix products alone reach about 0.75. Small models and short rows reach less.
"""
CPU_FASTEST, CPU_TYPICAL, CPU_SLOWEST = 1.0, 0.3, 0.05
"""The same on a CPU, whose cores are not known here."""
TOLERANCE_OF_ONE_RUN = 0.2
TOLERANCE_OF_RUNS = 0.05
"""Least relative distance of both bounds from a measured median: after one run, and after more."""
Efficiency = Annotated[float, Field(gt=0, le=10, allow_inf_nan=False)]


class MeasuredSpeed(BaseModel):
    """One product's entry in `cost.speeds` of the chart. `finetune calibrate --speeds` prints it.

    An efficiency is the time that a run would take at the given speeds, over the measured time.
    """

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="forbid", frozen=True)

    product: Annotated[str, Field(min_length=1, max_length=256)]
    teraflops: Annotated[float, Field(gt=0, le=1e6, allow_inf_nan=False)]
    gigabytes_per_second: Annotated[float, Field(gt=0, le=1e7, allow_inf_nan=False)]
    efficiency: Efficiency
    low_efficiency: Efficiency
    high_efficiency: Efficiency
    runs: Annotated[int, Field(ge=1, le=1_000_000)] = 1

    @model_validator(mode="after")
    def _is_ordered(self) -> Self:
        if not self.low_efficiency <= self.efficiency <= self.high_efficiency:
            raise ValueError(
                "efficiency must be from lowEfficiency to highEfficiency, found "
                f"{self.efficiency}, {self.low_efficiency} and {self.high_efficiency}"
            )
        return self

    @property
    def rates(self) -> Rates:
        """The speeds that the efficiency refers to."""
        return Rates(self.teraflops * 1e12, self.gigabytes_per_second * 1e9)


@dataclass(frozen=True)
class Speed:
    """How fast a device trains. `slowest` <= `typical` <= `fastest` are shares of `rates`.

    `waits_for_host` is true if a host starts every kernel of the device. `reason` says where the shares come from.
    """

    rates: Rates
    slowest: float
    typical: float
    fastest: float
    source: Source
    reason: str
    waits_for_host: bool = True

    def efficiency(self, bound: str) -> float:
        """The share of `rates` for one bound of a time: the fastest for `low`."""
        return {"low": self.fastest, "expected": self.typical, "high": self.slowest}[bound]

    def shared(self, replicas: int) -> Speed:
        """The speed on a GPU that so many pods may share: anything from alone to an equal share."""
        if replicas <= 1:
            return self
        return Speed(
            self.rates,
            self.slowest / replicas,
            self.typical / replicas,
            self.fastest,
            self.source,
            f"{self.reason}; up to {replicas} pods share the GPU",
            self.waits_for_host,
        )


CPU_SPEED = Speed(
    CPU,
    CPU_SLOWEST,
    CPU_TYPICAL,
    CPU_FASTEST,
    "Guessed",
    "TRAIN computes on a CPU, whose speed is a wide guess",
    waits_for_host=False,
)


def speed_of(product: str, measured: Sequence[MeasuredSpeed]) -> Speed | None:
    """The speed of a product: measured if `measured` has it, else guessed from published figures; None without both."""
    for entry in measured:
        if same_product(entry.product, product):
            runs = f"{entry.runs} measured run{'s' if entry.runs != 1 else ''}"
            return Speed(
                entry.rates,
                entry.low_efficiency,
                entry.efficiency,
                entry.high_efficiency,
                "Measured",
                f"the speed is that of {runs} on {product}",
            )
    rates = published_rates(product)
    if rates is None:
        return None
    reason = (
        f"{product} has no measured run, so the speed is a wide guess: {TYPICAL:.0%} of the published speed, "
        f"from {SLOWEST:.0%} to {FASTEST:.0%}"
    )
    return Speed(rates, SLOWEST, TYPICAL, FASTEST, "Published", reason)


def same_product(name: str, product: str) -> bool:
    """True if `name`, as a person writes it, means this product."""
    if name == product:
        return True
    found = find_product(name)
    return found is not None and found.product == product


def reference_rates(product: str) -> Rates:
    """The speeds to which measured runs of a product refer."""
    return published_rates(product) or UNLISTED


def fit_speed(product: str, efficiencies: Sequence[float]) -> MeasuredSpeed:
    """Summarize measured runs of one product. The median counts, so one unusual run moves little.

    The bounds are the extremes, and at least 5 % away from the median, or 20 % after one run. Raises ValueError without
    runs.
    """
    if not efficiencies:
        raise ValueError("a speed must have at least one run, found none")
    middle = median(efficiencies)
    tolerance = TOLERANCE_OF_ONE_RUN if len(efficiencies) == 1 else TOLERANCE_OF_RUNS
    rates = reference_rates(product)
    return MeasuredSpeed(
        product=product,
        teraflops=round(rates.operations / 1e12, 3),
        gigabytes_per_second=round(rates.bytes / 1e9, 3),
        efficiency=round(middle, 4),
        low_efficiency=round(min(*efficiencies, middle * (1 - tolerance)), 4),
        high_efficiency=round(max(*efficiencies, middle * (1 + tolerance)), 4),
        runs=len(efficiencies),
    )
