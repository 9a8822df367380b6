from __future__ import annotations

import pytest
from finetune_operator.cluster.pages import FIRST_PAGE, PAGE_BYTES, next_limit


def limits(object_bytes: int, most: int, pages: int) -> list[int]:
    """The limits of the first pages of a long list of equal objects."""
    found = [FIRST_PAGE]
    for _ in range(pages - 1):
        found.append(next_limit(found[-1], found[-1], found[-1] * object_bytes, most))
    return found


def test_pages_of_small_objects_grow_to_the_largest_number() -> None:
    assert limits(300, most=100, pages=5) == [20, 40, 80, 100, 100]


@pytest.mark.parametrize("object_bytes", [5_000, 16_000, 100_000])
def test_a_page_has_as_many_objects_as_fit(object_bytes: int) -> None:
    last = limits(object_bytes, most=500, pages=12)[-1]
    assert last * object_bytes <= PAGE_BYTES < (last + 1) * object_bytes


def test_an_object_that_is_larger_than_a_page_comes_alone() -> None:
    assert limits(2_000_000, most=500, pages=3) == [FIRST_PAGE, 1, 1]


def test_pages_grow_again_behind_huge_objects() -> None:
    assert next_limit(1, 1, 300, most=500) == 2


def test_an_empty_page_tells_nothing_about_the_next_one() -> None:
    """The API server may have looked at many objects that the selector does not select."""
    assert next_limit(40, 0, 200, most=500) == 40
