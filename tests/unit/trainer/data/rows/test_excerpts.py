from __future__ import annotations

import pytest
from finetune_trainer.data.rows.excerpts import excerpt, middle_cut, percent, visible
from hypothesis import given
from hypothesis import strategies as st


@given(text=st.text(), maximum=st.integers(10, 60))
def test_an_excerpt_is_short_and_completely_visible(text: str, maximum: int) -> None:
    shown = excerpt(text, maximum)
    assert len(shown) <= maximum
    assert visible(shown) == shown
    assert len(middle_cut(text, maximum)) <= 10 * maximum


@pytest.mark.parametrize(
    ("fraction", "text"),
    [(0, "0%"), (0.00001, "under 0.01%"), (0.0012, "0.12%"), (0.051, "5.1%"), (0.5, "50%"), (0.996, "99.6%"), (1, "100%")],
)  # fmt: skip
def test_a_share_is_never_rounded_to_none_or_all(fraction: float, text: str) -> None:
    assert percent(fraction) == text
