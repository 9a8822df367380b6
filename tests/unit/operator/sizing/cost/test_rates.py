from __future__ import annotations

import pytest
from finetune_operator.sizing.cost.rates import published_rates
from finetune_operator.sizing.gpus.products import PRODUCTS, find_product
from finetune_operator.sizing.memory.stack import DEFAULT_STACK
from finetune_operator.sizing.support import unsupported

UNPUBLISHED = {"NVIDIA L40G"}
"""No data sheet of it is known."""


def test_every_product_that_can_run_the_image_has_published_speeds() -> None:
    missing = {
        gpu.product
        for gpu in PRODUCTS
        if unsupported(gpu, DEFAULT_STACK) is None and published_rates(gpu.product) is None
    }
    assert missing == UNPUBLISHED


def test_every_published_speed_is_that_of_a_known_product_and_plausible() -> None:
    for gpu in PRODUCTS:
        rates = published_rates(gpu.product)
        if rates is not None:
            assert 1e13 < rates.operations < 1e16, gpu.product
            # A matrix product of a pass needs 30 to 1,300 operations for each byte before it computes at full speed.
            assert 30 < rates.operations / rates.bytes < 1300 or "H20" in gpu.product, gpu.product


@pytest.mark.parametrize(
    ("product", "ai_tops", "share"),
    [
        ("NVIDIA RTX 5060 Ti", 759, 16),
        ("NVIDIA RTX 5090", 3352, 16),
        ("NVIDIA RTX 5090 D", 2375, 16),
        ("NVIDIA RTX PRO 6000", 4000, 8),
    ],
)
def test_a_blackwell_card_has_its_share_of_the_operations_it_is_sold_by(
    product: str, ai_tops: float, share: int
) -> None:
    rates = published_rates(product)
    assert rates is not None
    assert rates.operations == pytest.approx(ai_tops * 1e12 / share, rel=0.01)


def test_a_mig_slice_has_its_share_of_the_whole_gpu() -> None:
    slice_of = find_product("NVIDIA-A100-SXM4-80GB-MIG-3g.40gb")
    whole = published_rates("NVIDIA A100 80GB")
    assert slice_of is not None
    assert whole is not None
    found = published_rates(slice_of.product)
    assert found is not None
    assert found.operations == pytest.approx(whole.operations * 3 / 7)
    assert found.bytes == pytest.approx(whole.bytes * 3 / 7)


@pytest.mark.parametrize("name", ["", "NVIDIA X999", "NVIDIA X999 MIG 1g.5gb", "NVIDIA A100 80GB MIG"])
def test_an_unknown_product_has_no_speed(name: str) -> None:
    assert published_rates(name) is None
