"""The numbers of a step that are read when the next one is queued."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from finetune_trainer.stages.train.unread import FinishedStep, HostCopy, UnreadSteps


def finished(step: int) -> FinishedStep:
    numbers = HostCopy(torch.tensor([step / 2, step * 2.0]))
    return FinishedStep(step, step / 10, 1e-3 * step, 4, 100 + step, 120 + step, numbers)


@pytest.fixture
def reported() -> list[dict[str, Any]]:
    return []


@pytest.fixture
def unread(reported: list[dict[str, Any]]) -> UnreadSteps:
    return UnreadSteps(reported.append)


@pytest.fixture
def behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let numbers arrive late, as from a GPU that still computes."""
    monkeypatch.setattr(HostCopy, "arrived", property(lambda _copy: False))


def test_an_entry_has_the_step_of_its_numbers() -> None:
    assert finished(3).entry() == {
        "loss": 1.5,
        "grad_norm": 6.0,
        "learning_rate": 3e-3,
        "examples": 4,
        "tokens": 103,
        "computedTokens": 123,
        "epoch": 0.3,
        "step": 3,
    }


def test_numbers_that_have_arrived_are_reported_at_once(
    unread: UnreadSteps, reported: list[dict[str, Any]]
) -> None:
    for step in (1, 2):
        unread.add(finished(step))
        assert [entry["step"] for entry in reported] == list(range(1, step + 1))


@pytest.mark.usefixtures("behind")
def test_a_device_that_is_behind_is_waited_for_one_step_later(
    unread: UnreadSteps, reported: list[dict[str, Any]]
) -> None:
    for step in (1, 2, 3):
        unread.add(finished(step))
        assert [entry["step"] for entry in reported] == list(range(1, step))
    unread.report_all()
    assert [entry["step"] for entry in reported] == [1, 2, 3]


@pytest.mark.usefixtures("behind")
def test_a_step_whose_report_fails_is_not_reported_again() -> None:
    seen: list[int] = []

    def report(entry: dict[str, Any]) -> None:
        seen.append(entry["step"])
        if entry["step"] == 1:
            raise ValueError("not finite")

    unread = UnreadSteps(report)
    unread.add(finished(1))
    with pytest.raises(ValueError, match="not finite"):
        unread.add(finished(2))
    unread.report_all()
    assert seen == [1, 2]


@pytest.mark.usefixtures("behind")
def test_forgotten_steps_are_not_reported(unread: UnreadSteps, reported: list[dict[str, Any]]) -> None:
    unread.add(finished(1))
    unread.forget()
    unread.report_all()
    assert reported == []


@pytest.mark.gpu
def test_only_reading_waits_for_a_gpu() -> None:
    numbers = torch.tensor([1.0, 2.0], device="cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        torch.cuda._sleep(100_000_000)
        copy = HostCopy(numbers)
        numbers.zero_()
        assert not copy.arrived
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert copy.read() == [1.0, 2.0]
    assert copy.arrived
