"""The 95 % confidence interval of a mean over rows, honest for few, skewed and heavy-tailed rows.

The mean is a ratio, sum(values) / sum(weights), and rows are the independent draws. Two intervals are computed, and the
result holds both:

- Student's t with the linearized ratio (Cochran 1977, section 6.4; residuals as in MacKinnon and White 1985). It covers
  heavy tails, where resampling underestimates.
- The bootstrap-t (Efron and Tibshirani 1993, section 12.5). It covers skewed rows, where Student's t is too narrow on one
  side. A plain percentile interval is too narrow for few rows: with no true difference, it excludes zero in 18 % of all
  cases for 5 rows.
"""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

RESAMPLES = 10_000
_AT_ONCE = 500
_TAIL = 0.975
# With fewer rows a resample often repeats one row only, and then it has no spread.
_LEAST_ROWS_TO_RESAMPLE = 5
# Student's t for 1 to 6 degrees of freedom, where the expansion below is not exact enough.
_FEW_DEGREES = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447)


def ratio_interval(
    values: NDArray[np.float64], weights: NDArray[np.float64], seed: int
) -> tuple[float, float]:
    """Return (low, high) for sum(values) / sum(weights); both are per row, and weights are positive.

    One row tells nothing about other rows: both ends are then its own ratio. The result depends on `seed` only.
    """
    center, error = (float(part) for part in ratio_estimate(values, weights))
    rows = len(values)
    if rows == 1 or error == 0:
        return center, center
    reach = student_t(rows - 1) * error
    low, high = center - reach, center + reach
    if rows >= _LEAST_ROWS_TO_RESAMPLE:
        lower, upper = _studentized_quantiles(values, weights, center, seed)
        low, high = min(low, center - upper * error), max(high, center - lower * error)
    return low, high


def student_t(degrees: int) -> float:
    """Return the 97.5 % quantile of Student's t, to three digits (Abramowitz and Stegun 1964, formula 26.7.5)."""
    if degrees <= len(_FEW_DEGREES):
        return _FEW_DEGREES[degrees - 1]
    x = NormalDist().inv_cdf(_TAIL)
    terms = (
        x,
        (x**3 + x) / 4,
        (5 * x**5 + 16 * x**3 + 3 * x) / 96,
        (3 * x**7 + 19 * x**5 + 17 * x**3 - 15 * x) / 384,
    )
    return math.fsum(term / degrees**power for power, term in enumerate(terms))


def _studentized_quantiles(
    values: NDArray[np.float64], weights: NDArray[np.float64], center: float, seed: int
) -> tuple[float, float]:
    """Return the 2.5 % and 97.5 % quantiles of (resampled mean - mean) / resampled standard error."""
    random = np.random.default_rng(seed)
    rows = len(values)
    studentized = []
    for _ in range(RESAMPLES // _AT_ONCE):
        chosen = random.integers(0, rows, size=(_AT_ONCE, rows))
        means, errors = ratio_estimate(values[chosen], weights[chosen])
        spread = errors > 0
        studentized.append((means[spread] - center) / errors[spread])
    low, high = np.quantile(np.concatenate(studentized), [1 - _TAIL, _TAIL])
    return float(low), float(high)


def ratio_estimate(
    values: NDArray[np.float64], weights: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the ratio sum(values) / sum(weights) over the last axis, and its standard error.

    A residual is divided by one less the row's share of all weights, because a heavy row pulls the ratio to itself.
    """
    total = weights.sum(axis=-1, keepdims=True)
    ratio = values.sum(axis=-1, keepdims=True) / total
    share = weights / total
    with np.errstate(divide="ignore", invalid="ignore"):
        residuals = np.where(share < 1, (values - ratio * weights) / (1 - share), 0.0)
    error = np.sqrt((residuals**2).sum(axis=-1)) / total[..., 0]
    return ratio[..., 0], error
