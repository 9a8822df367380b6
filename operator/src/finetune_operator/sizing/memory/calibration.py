"""Constants that measured runs correct."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from finetune_operator.sizing.memory.profile import ProfileError, parse_record

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_FEWEST_RUNS = 3
# Of the residuals, these shares lie below the bounds that a calibration keeps.
_LOW, _HIGH = 0.05, 0.95


@dataclass(frozen=True)
class Calibration:
    """What measured runs say about the constants of an estimate. None leaves the stack profile's value.

    `activation_factor` multiplies activations and temporaries. `low_residual` and `high_residual` bound measured over
    estimated device bytes, less one; without runs they are 5 % either way, the spread between the closed form and
    published measurements of stacks whose profile is known (facts/gpu_memory.md, section 5).
    """

    version: str = "none"
    fragmentation: float | None = None
    context_bytes: int | None = None
    activation_factor: float = 1.0
    low_residual: float = -0.05
    high_residual: float = 0.05

    def __post_init__(self) -> None:
        if not 0.5 <= self.activation_factor <= 2:
            raise ProfileError(f"activationFactor must lie in 0.5..2, found {self.activation_factor}")
        if self.fragmentation is not None and not 0 <= self.fragmentation <= 1:
            raise ProfileError(f"fragmentation must lie in 0..1, found {self.fragmentation}")
        if self.low_residual > self.high_residual:
            raise ProfileError("lowResidual must not exceed highResidual")


NO_CALIBRATION = Calibration()


def parse_calibration(document: Mapping[str, Any]) -> Calibration:
    """Read the chart's `calibration` value. Raises ProfileError naming each bad member."""
    return parse_record("calibration", Calibration, document)


@dataclass(frozen=True)
class Run:
    """One run's estimate beside what was measured, in bytes.

    `estimated_static` is what does not depend on the batch: weights, adapter, gradients and optimiser states.
    `measured_device` is None where only torch's own counters are known.
    """

    estimated_peak: int
    estimated_static: int
    estimated_device: int
    measured_allocated: int
    measured_reserved: int
    measured_device: int | None = None


def fit_calibration(runs: Sequence[Run], version: str) -> Calibration:
    """Fit the constants to runs; each is a median, so one odd run moves none of them far.

    The activation factor is measured over estimated bytes of what is not static; fragmentation is reserved over
    allocated bytes, less one; the context is what the device gave beyond what torch reserved. The residuals' bounds
    are their 5 % and 95 % quantiles. Raises ProfileError with fewer than three runs.
    """
    if len(runs) < _FEWEST_RUNS:
        raise ProfileError(f"a calibration must rest on {_FEWEST_RUNS} runs at least, found {len(runs)}")
    factors = [
        (run.measured_allocated - run.estimated_static) / (run.estimated_peak - run.estimated_static)
        for run in runs
        if run.estimated_peak > run.estimated_static
    ]
    factor = min(2.0, max(0.5, _quantile(factors, 0.5))) if factors else 1.0
    fragmentation = max(
        0.0, _quantile([run.measured_reserved / run.measured_allocated - 1 for run in runs], 0.5)
    )
    contexts = [
        run.measured_device - run.measured_reserved for run in runs if run.measured_device is not None
    ]
    context = max(0, round(_quantile(contexts, 0.5))) if contexts else None
    residuals = []
    for run in runs:
        varying = run.estimated_peak - run.estimated_static
        allocated = run.estimated_static + factor * varying
        beyond = context if context is not None else run.estimated_device - run.estimated_peak
        measured = run.measured_device if run.measured_device is not None else run.measured_reserved + beyond
        residuals.append(measured / (allocated * (1 + fragmentation) + beyond) - 1)
    return Calibration(
        version=version,
        fragmentation=round(min(1.0, fragmentation), 4),
        context_bytes=context,
        activation_factor=round(factor, 4),
        low_residual=round(min(0.0, _quantile(residuals, _LOW)), 4),
        high_residual=round(max(0.0, _quantile(residuals, _HIGH)), 4),
    )


def _quantile(values: Sequence[float], share: float) -> float:
    """Linear interpolation between the two nearest of the sorted values."""
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)
