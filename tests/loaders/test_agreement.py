from __future__ import annotations

import math

import pytest

from tests.support.loaders.agreement import (
    Answer,
    decided_share,
    differences,
    equal_answers,
    lead_at_difference,
)

REFERENCE = Answer([5, 6, 2], [3.0, 0.1, 2.0], [6, 7, 8])


@pytest.mark.parametrize(
    ("found", "lead"),
    [
        ([5, 6, 2], None),
        ([5, 7, 2], 0.1),
        ([4, 6, 2], 3.0),
        ([5, 6], 2.0),
        ([5, 6, 2, 9], math.inf),
        ([], 3.0),
    ],
)
def test_the_lead_is_that_of_the_first_token_that_differs(found: list[int], lead: float | None) -> None:
    assert lead_at_difference(REFERENCE, found) == lead


def test_only_a_difference_above_the_noise_counts() -> None:
    found = [[5, 6, 2], [5, 7, 2], [4, 6, 2], [5, 6, 2, 9]]
    assert differences([REFERENCE] * 4, found, 0.12) == [2, 3]
    assert differences([REFERENCE] * 4, found, 0.08) == [1, 2, 3]
    assert equal_answers([REFERENCE] * 4, found) == 1


@pytest.mark.parametrize(("noise", "share"), [(0.05, 1), (0.1, 2 / 3), (2.5, 1 / 3), (3.0, 0)])
def test_a_token_is_decided_if_it_leads_by_more_than_the_noise(noise: float, share: float) -> None:
    assert decided_share([REFERENCE] * 2, noise) == pytest.approx(share)
