"""Constants of the estimate, corrected by measured runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from finetune_operator.sizing.memory.profile import DOCUMENT, Count, Number, ProfileError, Text, parse_record

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pydantic import ConfigDict

_FEWEST_RUNS = 3
# Quantiles of the residuals that become the bounds of a calibration.
_LOW, _HIGH = 0.05, 0.95


@dataclass(frozen=True)
class Calibration:
    """Constants of an estimate as measured runs correct them. None leaves the stack profile's value.

    `activation_factor` multiplies activations and temporaries. `low_residual` and `high_residual` are bounds of the
    relative error, measured over estimated device bytes less one. Without runs they are 5 % either way: the spread
    between the closed form and published measurements of stacks with a known profile (docs/stack-profile.md).
    """

    __pydantic_config__: ClassVar[ConfigDict] = DOCUMENT

    version: Text = "none"
    fragmentation: Number | None = None
    context_bytes: Count | None = None
    activation_factor: Number = 1.0
    low_residual: Number = -0.05
    high_residual: Number = 0.05

    def __post_init__(self) -> None:
        if not 0.5 <= self.activation_factor <= 2:
            raise ProfileError(f"activationFactor must be from 0.5 to 2, found {self.activation_factor}")
        if self.fragmentation is not None and not 0 <= self.fragmentation <= 1:
            raise ProfileError(f"fragmentation must be from 0 to 1, found {self.fragmentation}")
        if self.low_residual > self.high_residual:
            raise ProfileError(
                f"lowResidual must be at most highResidual, found {self.low_residual} and {self.high_residual}"
            )


NO_CALIBRATION = Calibration()


def parse_calibration(document: Mapping[str, Any]) -> Calibration:
    """Read the chart's `calibration` value. Raises ProfileError naming each bad member."""
    return parse_record("calibration", Calibration, document)


@dataclass(frozen=True)
class Run:
    """One run's estimated and measured memory in bytes.

    `estimated_static` does not depend on the batch: weights, adapter, gradients and optimizer states.
    `measured_device` is None if only torch's own counters are known.
    """

    estimated_peak: int
    estimated_static: int
    estimated_device: int
    measured_allocated: int
    measured_reserved: int
    measured_device: int | None = None


def fit_calibration(runs: Sequence[Run], version: str) -> Calibration:
    """Fit the constants to runs. Each constant is a median, so one unusual run moves none of them far.

    The activation factor is measured over estimated bytes, both without the static part. Fragmentation is reserved over
    allocated bytes, less one. The context is the device's bytes minus the reserved ones. The bounds of the residuals
    are their 5 % and 95 % quantiles. Raises ProfileError for fewer than three runs.
    """
    if len(runs) < _FEWEST_RUNS:
        raise ProfileError(f"a calibration must use at least {_FEWEST_RUNS} runs, found {len(runs)}")
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
    """Interpolate linearly between the two nearest of the sorted values."""
    ordered = sorted(values)
    position = share * (len(ordered) - 1)
    below = int(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (position - below)
