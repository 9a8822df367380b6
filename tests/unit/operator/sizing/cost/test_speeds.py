from __future__ import annotations

import pytest
from finetune_operator.sizing.cost.rates import published_rates
from finetune_operator.sizing.cost.speeds import MeasuredSpeed, fit_speed, speed_of
from pydantic import ValidationError


def test_a_product_without_a_run_has_a_wide_guess_that_says_so() -> None:
    speed = speed_of("NVIDIA L4", ())
    assert speed is not None
    assert speed.source == "Published"
    assert speed.fastest / speed.slowest >= 4
    assert "no measured run" in speed.reason


def test_a_measured_speed_comes_before_a_published_one_in_any_spelling() -> None:
    entry = fit_speed("NVIDIA L4", [0.5])
    for name in ("NVIDIA L4", "l4", "nvidia-l4"):
        speed = speed_of("NVIDIA L4", [entry.model_copy(update={"product": name})])
        assert speed is not None
        assert (speed.source, speed.typical) == ("Measured", 0.5)
    other = speed_of("NVIDIA A10G", [entry])
    assert other is not None
    assert other.source == "Published"


def test_an_unlisted_product_has_a_speed_only_if_it_was_measured() -> None:
    assert speed_of("ACME X1", ()) is None
    speed = speed_of("ACME X1", [fit_speed("ACME X1", [0.3, 0.3, 0.3])])
    assert speed is not None
    assert speed.source == "Measured"


def test_a_fit_is_a_median_and_its_bounds_hold_every_run() -> None:
    fitted = fit_speed("NVIDIA L4", [0.40, 0.41, 0.80])
    assert fitted.efficiency == 0.41
    assert (fitted.low_efficiency, fitted.high_efficiency) == (0.3895, 0.8)
    rates = published_rates("NVIDIA L4")
    assert rates is not None
    assert fitted.rates.operations == rates.operations
    alone = fit_speed("NVIDIA L4", [0.5])
    assert (alone.low_efficiency, alone.high_efficiency) == (0.4, 0.6)
    with pytest.raises(ValueError, match="at least one run"):
        fit_speed("NVIDIA L4", [])


def test_a_shared_gpu_may_be_as_slow_as_an_equal_share_of_it() -> None:
    speed = speed_of("NVIDIA L4", ())
    assert speed is not None
    shared = speed.shared(4)
    assert shared.slowest == speed.slowest / 4
    assert shared.fastest == speed.fastest
    assert speed.shared(1) == speed


def test_bounds_in_the_wrong_order_are_refused() -> None:
    entry = fit_speed("NVIDIA L4", [0.5]).model_dump()
    with pytest.raises(ValidationError, match="must be from lowEfficiency to highEfficiency"):
        MeasuredSpeed.model_validate({**entry, "low_efficiency": 0.6})
