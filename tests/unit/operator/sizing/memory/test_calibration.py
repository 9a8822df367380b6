"""Calibrations are read within bounds, and fitted to measured runs."""

from __future__ import annotations

from typing import Any

import pytest
from finetune_operator.sizing.memory.calibration import (
    NO_CALIBRATION,
    Run,
    fit_calibration,
    parse_calibration,
)
from finetune_operator.sizing.memory.profile import ProfileError


def test_an_empty_document_is_no_calibration() -> None:
    assert parse_calibration({}) == NO_CALIBRATION


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"activationFactor": 5}, "activationFactor must be from 0.5 to 2, found 5"),
        ({"activationFactor": 0.4}, "activationFactor must be from 0.5 to 2, found 0.4"),
        ({"fragmentation": 2}, "fragmentation must be from 0 to 1, found 2"),
        ({"lowResidual": 0.2}, "lowResidual must be at most highResidual, found 0.2 and 0.05"),
        ({"unknown": 1}, "unknown is unknown"),
        ([], "calibration must be an object, found list"),
    ],
)
def test_a_calibration_out_of_bounds_is_rejected(document: Any, message: str) -> None:
    with pytest.raises(
        ProfileError, match=f"^{message}" if isinstance(document, list) else f"^calibration: {message}"
    ):
        parse_calibration(document)


@pytest.mark.parametrize("factor", [0.5, 2])
def test_the_bounds_of_the_activation_factor_are_allowed(factor: float) -> None:
    assert parse_calibration({"activationFactor": factor}).activation_factor == pytest.approx(factor)


def _run(static: int, varying: int, factor: float, fragmentation: float, context: int) -> Run:
    allocated = static + round(varying * factor)
    reserved = round(allocated * (1 + fragmentation))
    return Run(static + varying, static, static + varying + 10**9, allocated, reserved, reserved + context)


def test_a_fit_finds_the_constants_that_made_the_runs() -> None:
    runs = [_run(4 * 10**9, varying, 1.06, 0.04, 4 * 10**8) for varying in (10**9, 3 * 10**9, 9 * 10**9)]
    found = fit_calibration(runs, "three runs")
    assert found.version == "three runs"
    assert found.activation_factor == pytest.approx(1.06, abs=1e-3)
    assert found.fragmentation == pytest.approx(0.04, abs=1e-3)
    assert found.context_bytes == pytest.approx(4 * 10**8, rel=1e-3)
    assert found.high_residual == pytest.approx(0, abs=1e-3)


def test_one_odd_run_widens_the_interval_and_leaves_the_constants() -> None:
    runs = [_run(4 * 10**9, 10**9 * n, 1.0, 0.02, 4 * 10**8) for n in range(1, 6)]
    odd = _run(4 * 10**9, 3 * 10**9, 1.5, 0.02, 4 * 10**8)
    found = fit_calibration([*runs, odd], "six runs")
    assert found.activation_factor == pytest.approx(1.0, abs=1e-3)
    assert found.high_residual > 0.1


def test_a_fit_without_device_measurements_leaves_the_context_to_the_profile() -> None:
    runs = [Run(2000, 1000, 3000, 2000, 2100) for _ in range(3)]
    found = fit_calibration(runs, "torch only")
    assert found.context_bytes is None
    assert found.fragmentation == pytest.approx(0.05)


def test_a_fit_keeps_the_activation_factor_within_its_bounds() -> None:
    found = fit_calibration([_run(10**9, 10**9, 3.0, 0.0, 0)] * 3, "thrice as much")
    assert found.activation_factor == pytest.approx(2.0)


def test_two_runs_are_too_few() -> None:
    with pytest.raises(ProfileError, match="at least 3 runs, found 2"):
        fit_calibration([_run(10**9, 10**9, 1, 0, 0)] * 2, "two")
