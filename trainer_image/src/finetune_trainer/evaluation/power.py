"""The number of rows that a verdict needs: enough to find a difference like the measured one."""

from __future__ import annotations

import math
from statistics import NormalDist

from finetune_trainer.evaluation.interval import student_t

POWER = 0.8
"""How often so many rows find the difference, if it is the true one."""
MAXIMUM_ROWS = 100_000
"""The most rows that a job can evaluate; a difference that needs more is not worth finding."""


def needed_rows(difference: float, error: float, rows: int, minimum: int) -> int | None:
    """Return the rows with which a 95 % interval excludes zero in 80 % of all cases, at least `minimum`.

    `error` is the standard error of `difference` on `rows` rows. The number is the smallest n with
    n >= ((t + z) * s / difference)^2, where s is the spread per row, t the quantile of Student's t for n rows, and z that
    of the power (Cohen 1988, section 2.4). None if this takes more than `MAXIMUM_ROWS`, or if there is no difference.
    """
    if difference == 0 or not math.isfinite(difference) or not math.isfinite(error):
        return None
    ratio = (error * math.sqrt(rows) / difference) ** 2
    reach = NormalDist().inv_cdf(POWER)
    needed = max(2, minimum)
    # The quantile falls as n grows, so the first n that is large enough for its own quantile is the smallest.
    while needed <= MAXIMUM_ROWS:
        wanted = math.ceil(min((student_t(needed - 1) + reach) ** 2 * ratio, MAXIMUM_ROWS + 1))
        if wanted <= needed:
            return needed
        lowest = math.ceil(min((NormalDist().inv_cdf(0.975) + reach) ** 2 * ratio, MAXIMUM_ROWS + 1))
        needed = max(needed + 1, lowest)
    return None
