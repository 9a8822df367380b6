from __future__ import annotations

from typing import Any

import pytest
import torch
from finetune_trainer.errors import Reason, StageError
from finetune_trainer.model.rehearsal import rehearse
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from tests.support.architectures import _SIZES, FAMILIES


def on_meta(family: str, **changes: Any) -> Any:
    config = AutoConfig.for_model(family, **{**_SIZES, **FAMILIES.get(family, {}), **changes})
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


@pytest.mark.parametrize("family", FAMILIES)
def test_known_families_pass_and_stay_as_they_are(family: str) -> None:
    model = on_meta(family)
    before = dict(model.named_modules())
    model.train()
    rehearse(model)
    assert dict(model.named_modules()) == before
    assert model.training


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        # A rotary embedding needs an even number of dimensions; this config asks for three of eight.
        ("phi", {"partial_rotary_factor": 0.4}),
        # The output of the attention must be as wide as the heads together.
        ("helium", {"head_dim": 12}),
    ],
)
def test_layers_that_do_not_fit_together_are_refused(family: str, changes: dict[str, Any]) -> None:
    with pytest.raises(StageError, match="layers that fit together") as caught:
        rehearse(on_meta(family, **changes))
    assert caught.value.reason is Reason.INVALID_MODEL


def test_a_head_that_computes_in_an_unknown_way_is_refused() -> None:
    """RecurrentGemma caps its logits by a member of its own."""
    model = on_meta("recurrent_gemma", block_types=["recurrent", "attention"], lru_width=32)
    with pytest.raises(StageError, match="another computation in RecurrentGemma") as caught:
        rehearse(model)
    assert caught.value.reason is Reason.UNSUPPORTED_MODEL


class _Reader(nn.Module):
    def forward(self, *_inputs: Any, **_settings: Any) -> Any:
        return torch.ones(1, device="meta").item()


class _Unprepared(nn.Module):
    """Reads what a real forward pass would have prepared."""

    prepared: torch.Tensor | None = None

    def forward(self, *_inputs: Any, **_settings: Any) -> Any:
        return self.prepared.shape  # type: ignore[union-attr]  # the error is the purpose


@pytest.mark.parametrize("layer", [_Reader, _Unprepared])
def test_a_model_that_cannot_be_tried_is_left_to_train(layer: type[nn.Module]) -> None:
    model = on_meta("llama")
    model.model.layers[0] = layer()
    rehearse(model)
