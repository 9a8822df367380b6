"""Histograms and capacity."""

from __future__ import annotations

import numpy as np
import pytest
from finetune_trainer.report.statistics import Capacity, Histogram
from hypothesis import given
from hypothesis import strategies as st


@given(values=st.lists(st.integers(0, 200_000), min_size=1, max_size=300))
def test_a_histogram_counts_every_value_once(values: list[int]) -> None:
    histogram = Histogram.of(np.asarray(values))
    assert sum(histogram.counts) == len(values)
    assert len(histogram.edges) == len(histogram.counts) + 1 <= 60
    assert list(histogram.edges) == sorted(set(histogram.edges))
    assert (histogram.total, histogram.maximum) == (sum(values), max(values))
    for start, end, count in zip(histogram.edges, histogram.edges[1:], histogram.counts, strict=False):
        assert count == sum(start <= value < end for value in values)


def test_capacity_is_a_ratio_of_bits() -> None:
    assert Capacity(supervised_tokens=2_000_000, trainable_parameters=500_000).ratio == pytest.approx(2.0)
