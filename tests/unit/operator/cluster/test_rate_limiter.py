from __future__ import annotations

import pytest
from finetune_operator.cluster.rate_limiter import TokenBucket

from tests.support.clock import Clock


def test_a_burst_passes_at_once_and_then_the_rate_applies() -> None:
    clock = Clock()
    bucket = TokenBucket(10, 3, clock)
    assert [bucket.reserve() for _ in range(3)] == [0, 0, 0]
    assert bucket.reserve() == pytest.approx(0.1)
    assert bucket.reserve() == pytest.approx(0.2)
    clock.now += 10
    assert [bucket.reserve() for _ in range(3)] == [0, 0, 0]
    assert bucket.reserve() == pytest.approx(0.1)


async def test_a_caller_with_a_token_does_not_wait() -> None:
    clock = Clock()
    bucket = TokenBucket(0.001, 1, clock)
    await bucket.acquire()
    assert bucket.reserve() == pytest.approx(1000), "the next one would wait"


def test_tokens_never_exceed_the_burst() -> None:
    clock = Clock()
    bucket = TokenBucket(10, 2, clock)
    clock.now += 3600
    assert [bucket.reserve() for _ in range(3)] == [0, 0, pytest.approx(0.1)]
