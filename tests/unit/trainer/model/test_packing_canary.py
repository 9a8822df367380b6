"""The canary finds the architectures whose rows see each other in a pass, and passes the others."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from finetune_trainer.model import packing_canary
from finetune_trainer.model.attention_policy import AttentionChoice
from finetune_trainer.model.packing_canary import packing_obstacle

from tests.support.architectures import FAMILIES, LEAKING, tiny


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_architectures_that_leak_or_take_no_rows_are_found(family: str) -> None:
    model = tiny(family).train()
    before = model.config._attn_implementation
    found = packing_obstacle(model, 100)
    assert (found is None) == (family not in LEAKING)
    assert model.training
    assert model.config._attn_implementation == before


@pytest.mark.parametrize(
    ("family", "said"),
    [
        ("bloom", "see each other"),
        ("lfm2", "see each other"),
        ("stablelm", "do not get the bounds"),
        ("falcon", "does not take packed rows"),
    ],
)
def test_the_reason_names_what_was_found(family: str, said: str) -> None:
    assert said in (packing_obstacle(tiny(family), 100) or "")


def test_a_device_without_an_attention_for_packed_rows_is_an_obstacle(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    choice = AttentionChoice(None, "there is no kernel for rows", cudnn=False)
    monkeypatch.setattr(packing_canary, "attention_of", lambda *_arguments, **_settings: choice)
    assert packing_obstacle(tiny("llama"), 100) == (
        "rows of this model cannot share a pass: there is no kernel for rows"
    )


def test_a_model_that_drops_scores_is_not_packed() -> None:
    """The canary itself computes without dropout."""
    model = tiny("llama")
    model.config.attention_dropout = 0.1
    assert "drops scores" in (packing_obstacle(model, 100) or "")


def test_positions_that_go_on_across_rows_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that ignores the given positions computes the second row as a later part of the first."""
    model = tiny("gpt2")
    assert "drops scores" in (packing_obstacle(model, 20) or ""), "by default, in training"
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    assert packing_obstacle(model, 20) is None
    own = model.base_model.forward

    def forward(**arguments: Any) -> Any:
        if arguments.get("position_ids") is not None:
            arguments["position_ids"] = torch.arange(arguments["input_ids"].shape[1])[None]
        return own(**arguments)

    monkeypatch.setattr(model.base_model, "forward", forward)
    assert "as by themselves" in (packing_obstacle(model, 20) or "")


def test_a_window_that_the_layers_do_not_pass_matters_only_to_longer_rows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = tiny("mistral")
    monkeypatch.setattr(
        packing_canary,
        "_noting",
        lambda _windows, attention, *arguments, **settings: attention(*arguments, **settings),
    )
    assert packing_obstacle(model, 4) is None
    assert "sliding window" in (packing_obstacle(model, 5) or "")


def test_a_full_gpu_is_no_obstacle_but_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise a run would be padded because of memory that it needs anyway."""

    def full(*_arguments: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(packing_canary, "packed_states", full)
    with pytest.raises(torch.OutOfMemoryError):
        packing_obstacle(tiny("llama"), 100)
