"""Decides from the numbers of a comparison whether the merged model is the trained one. ADR 0025 has the reasons."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from finetune_trainer.stages.merge.measures import Measures, RowMeasure
    from finetune_trainer.stages.merge.weight_proof import TensorProof

Verdict = Literal["Proven", "Unproven"]

EFFECT_SHARE = 0.02
"""KL(trained || merged) may be this part of KL(trained || base)."""
NOISE_FACTOR = 3.0
"""The mean divergence may be this many times the measured noise, and that of one row as many times more."""
SLOPE_TOLERANCE = 0.05
SLOPE_ERRORS = 3.0
"""The slope may differ from 1 by the tolerance and this many of its standard errors."""
DEVIATION_SHARE = 2e-4
"""The exact weights' log-probabilities may deviate by this part of what the adapter changes."""
ROUNDING_SHARE = 0.02
ARITHMETIC_SHARE = 0.5
"""A GPU may compute products of float32 with fewer bits; what it then differs by is a quarter of bf16's error."""
POWER = 0.1
"""A comparison proves something if it would find an adapter with this part too much or too little."""
FLOAT32_NATS = 1e-4
"""Two processors that compute the same in float32 differ by less, in nats per token (root mean square)."""
FLOAT32_DIVERGENCE = 1e-7
UNKNOWN_ARITHMETIC = 0.005
"""KL of bf16 arithmetic where it could not be measured; measured are 0.002 to 0.005 on a model of 135M parameters."""
FOREIGN_SHARE = 5e-4
"""Share of a weight's elements that may not be the exact value, rounded once. It is 0 but for ties in random rounding."""
_FEW_ELEMENTS = 2

# The bounds of the records of older trainers, which do not know the base's numbers (ADR 0009).
MAXIMUM_DIVERGENCE = 0.02
MAXIMUM_LOSS_SHARE = 0.02
MAXIMUM_LOSS_NATS = 0.01


def noise(row: RowMeasure) -> float:
    """Return the divergence that rounding and arithmetic make on a row, or on all rows (`Measures.mean`)."""
    arithmetic = UNKNOWN_ARITHMETIC if math.isnan(row.arithmetic) else row.arithmetic
    return row.rounding + arithmetic


def slope_tolerance(measures: Measures) -> float:
    """Return by how much the slope may differ from 1."""
    return SLOPE_TOLERANCE + SLOPE_ERRORS * measures.slope.noise


def allowed_deviation(measures: Measures) -> float:
    """Return by how much the exact weights' log-probabilities may deviate, in nats (root mean square)."""
    return (
        DEVIATION_SHARE * measures.change
        + ROUNDING_SHARE * measures.rounding
        + ARITHMETIC_SHARE * measures.arithmetic
        + FLOAT32_NATS
    )


def verdict(measures: Measures) -> Verdict:
    """Return Unproven if the comparison could not have shown a fault.

    That is so if the adapter's whole effect is within the noise, or if a tenth of it is: then an adapter with 0.9 of
    its strength would have passed.
    """
    mean = measures.mean
    by_slope = slope_tolerance(measures) < POWER
    by_deviation = allowed_deviation(measures) < POWER * measures.change and not math.isnan(
        measures.deviation
    )
    return "Proven" if mean.effect > noise(mean) and (by_slope or by_deviation) else "Unproven"


def fault(measures: Measures) -> str | None:
    """Describe the first number that is out of bounds; None if the merged model is the trained one."""
    return next(_faults(measures), None)


def weight_fault(proofs: Sequence[TensorProof]) -> str | None:
    """Describe the first tensor that has other values than it must have; None if there is none."""
    for proof in proofs:
        if proof.foreign > _allowed(proof):
            what = (
                f"base plus update, rounded once (it has {proof.projection:.3g} of the update)"
                if proof.intended
                else "the base as trained"
            )
            return f"tensor {proof.name} must be {what}, found other values in {proof.foreign} of {proof.elements} elements"
    return None


def fault_without_effect(
    divergence: float, tokens: int, trained_loss: float, merged_loss: float
) -> str | None:
    """Describe the first number out of the absolute bounds, for a record that does not know the adapter's effect."""
    if not divergence <= MAXIMUM_DIVERGENCE:
        return (
            f"KL divergence from the trained model must be at most {MAXIMUM_DIVERGENCE} nats a token, "
            f"found {divergence:.4f} over {tokens} tokens"
        )
    allowed = max(MAXIMUM_LOSS_SHARE * trained_loss, MAXIMUM_LOSS_NATS)
    if not abs(merged_loss - trained_loss) <= allowed:
        return f"loss must be within {allowed:.4f} of the trained model's {trained_loss:.4f}, found {merged_loss:.4f}"
    return None


def _allowed(proof: TensorProof) -> float:
    # An update makes the weight depend on sums, whose last bits depend on the processor. A copy has none.
    return _FEW_ELEMENTS + FOREIGN_SHARE * proof.elements if proof.intended else 0


def _faults(measures: Measures) -> Iterator[str]:
    mean = measures.mean
    # Every comparison is written so that NaN is a fault.
    limit = EFFECT_SHARE * mean.effect + NOISE_FACTOR * noise(mean) + FLOAT32_DIVERGENCE
    if not mean.divergence <= limit:
        yield (
            f"KL(trained || merged) must be at most {limit:.3g} nats a token ({EFFECT_SHARE:.0%} of the adapter's effect "
            f"{mean.effect:.3g} and the noise {noise(mean):.3g}), found {mean.divergence:.3g}"
        )
    for row in measures.rows:
        limit = EFFECT_SHARE * row.effect + NOISE_FACTOR * (noise(row) + noise(mean)) + FLOAT32_DIVERGENCE
        if not row.divergence <= limit:
            yield (
                f"KL(trained || merged) of row {row.row} must be at most {limit:.3g} nats a token "
                f"({EFFECT_SHARE:.0%} of the adapter's effect {row.effect:.3g} and the noise), found {row.divergence:.3g}"
            )
    tolerance = slope_tolerance(measures)
    if not abs(measures.slope.value - 1) <= tolerance:
        yield (
            f"change of log-probabilities must be {1 - tolerance:.3g} to {1 + tolerance:.3g} of the trained model's, "
            f"found {measures.slope.value:.3g}"
        )
    if not math.isnan(measures.deviation) or not math.isfinite(measures.merged_loss):
        allowed = allowed_deviation(measures)
        if not measures.deviation <= allowed:
            yield (
                f"weights, before they are rounded, must predict what was trained within {allowed:.3g} nats a token, "
                f"found a deviation of {measures.deviation:.3g}"
            )
