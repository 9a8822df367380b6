"""The 95 % confidence interval of a paired difference of shares, honest for few rows and for rows that all agree.

A share is a number from 0 to 1 per row, such as whether an answer is exact. Rows often agree completely, and then
neither Student's t nor a bootstrap has any width. Bonett and Price (2012, "Adjusted Wald confidence interval for a
difference of binomial proportions based on paired data") add one row on either side, with the differences +1 and -1.
Fagerland, Lydersen and Laake (2014) recommend it for paired proportions. Here it also serves shares between 0 and 1, and
Student's t replaces the normal quantile, because rows may be few.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from finetune_trainer.evaluation.interval import student_t

if TYPE_CHECKING:
    from collections.abc import Sequence


def share_interval(differences: Sequence[float]) -> tuple[float, float]:
    """Return (low, high) for the mean of differences between -1 and 1, one per row. Raises ValueError for no row."""
    if not differences:
        raise ValueError("an interval needs at least one row, found none")
    rows = [*differences, 1.0, -1.0]
    center = math.fsum(rows) / len(rows)
    variance = math.fsum((row - center) ** 2 for row in rows) / len(rows)
    reach = student_t(len(rows) - 1) * math.sqrt(variance / len(rows))
    return max(-1.0, center - reach), min(1.0, center + reach)
