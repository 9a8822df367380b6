"""Reasons and messages of datasets and models."""

from __future__ import annotations

import pytest
from finetune_trainer.errors import Reason
from finetune_trainer.sources.fetch_target import DATASET, MODEL, FetchTarget


@pytest.mark.parametrize(
    ("target", "reason"),
    [(DATASET, Reason.DATASET_ADDRESS_FORBIDDEN), (MODEL, Reason.MODEL_ADDRESS_FORBIDDEN)],
)
def test_a_forbidden_address_has_the_targets_reason_and_name(target: FetchTarget, reason: Reason) -> None:
    error = target.forbidden_address()
    assert error.reason is reason
    assert target.name in error.message
    assert "trainer.limits.allowPrivateAddresses" in error.message


def test_a_jobs_forbidden_proxy_has_the_targets_reason_and_a_remedy() -> None:
    error = MODEL.forbidden_proxy()
    assert error.reason is Reason.MODEL_ADDRESS_FORBIDDEN
    assert "trainer.network" in error.message
