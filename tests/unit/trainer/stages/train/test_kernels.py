"""Checkpoints and results name the kernels of a run."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from finetune_trainer.model.fused.policy import KernelChoice
from finetune_trainer.stages.train.kernels import MEMBER, KernelCallback, begun_kernels, kernels_result


def _state(**members: Any) -> SimpleNamespace:
    return SimpleNamespace(stateful_callbacks=members)


def test_a_checkpoint_names_the_kernels_of_its_run() -> None:
    state = _state(**{MEMBER: {"used": ["Old"]}})
    KernelCallback(KernelChoice(("RmsNorm", "Rope"))).on_train_begin(None, state, None)
    assert begun_kernels(state) == ("RmsNorm", "Rope")


@pytest.mark.parametrize("members", [{}, {MEMBER: None}, {MEMBER: {}}, {MEMBER: {"used": "RmsNorm"}}])
def test_a_checkpoint_that_names_none_began_without(members: dict[str, Any]) -> None:
    assert begun_kernels(_state(**members)) == ()


def test_the_result_has_a_reason_of_bounded_length() -> None:
    result = kernels_result(KernelChoice(("Rope",), (("SwiGlu", "x" * 900),)))
    assert result.used == ("Rope",)
    assert len(result.reason) == 512
