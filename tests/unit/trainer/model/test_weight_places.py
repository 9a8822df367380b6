"""Where weight files hold the tensors of a model, told by transformers' own conversion."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from finetune_trainer.model import weight_places as places_module
from finetune_trainer.model.packed_parameters import packed_parameters
from finetune_trainer.model.weight_places import Rows, WeightPlaces, weight_places
from finetune_trainer.proof.small_run import small_model
from torch.nn import Linear, Module
from transformers import AutoConfig

if TYPE_CHECKING:
    from collections.abc import Callable

State = dict[str, torch.Tensor]


def places_of(kind: str) -> WeightPlaces:
    model = small_model(AutoConfig.for_model(kind))
    return weight_places(model, {parameter.name for parameter in packed_parameters(model)})


def test_a_model_that_is_held_as_it_is_has_no_other_places() -> None:
    assert places_of("llama") == WeightPlaces()


def test_linear_layers_have_other_names_in_the_files() -> None:
    found = places_of("exaone")
    own = "model.layers.1.self_attn.o_proj.weight"
    assert found.renamed["transformer.h.1.attn.attention.out_proj.weight"] == own
    assert not found.cut
    assert not found.unknown


def test_the_rows_of_one_tensor_are_the_weights_of_three_layers() -> None:
    found = places_of("sarvam_moe")
    fused = "model.layers.0.attention.query_key_value.weight"
    layers = {name.split(".")[-2]: rows for name, rows in found.cut_from(fused).items()}
    assert layers == {
        "q_proj": Rows(fused, 0, 64),
        "k_proj": Rows(fused, 64, 96),
        "v_proj": Rows(fused, 96, 128),
    }
    assert found.shapes[fused] == (128, 64)


def test_a_convolution_is_joined_from_three_tensors() -> None:
    found = places_of("kimi_linear")
    path = "model.layers.0.self_attn"
    parts = tuple(f"{path}.{one}_conv1d.weight" for one in "qkv")
    assert found.joined[f"{path}.conv1d.weight"] == parts
    assert found.shapes[parts[1]] == (64, 1, 4)
    assert not found.unknown


class Pair(Module):
    """Two linear layers with 4 and 2 outputs for 6 inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = Linear(6, 4, bias=False), Linear(6, 2, bias=False)


def fused(state: State) -> State:
    return {"both.weight": torch.cat([state["first.weight"], state["second.weight"]])}


def interleaved(state: State) -> State:
    rows = torch.stack([state["first.weight"][:2], state["second.weight"]], dim=1).flatten(0, 1)
    return {"both.weight": rows, "rest.weight": state["first.weight"][2:]}


def reversed_rows(state: State) -> State:
    return {"first.weight": state["first.weight"].flip(0), "second.weight": state["second.weight"]}


def transposed(state: State) -> State:
    return {"first.weight": state["first.weight"].T.contiguous(), "second.weight": state["second.weight"]}


def padded(state: State) -> State:
    first = state["first.weight"]
    return {
        "first.weight": torch.cat([first, torch.zeros_like(first[:1])]),
        "second.weight": state["second.weight"],
    }


def with_a_gap(state: State) -> State:
    return {"part.weight": state["first.weight"][1:].clone(), "second.weight": state["second.weight"]}


def exchanged(state: State) -> State:
    return {"first.weight": state["second.weight"], "second.weight": state["first.weight"]}


def reading_values(state: State) -> State:
    # Integers have no mean.
    return {
        "first.weight": state["first.weight"] - state["first.weight"].mean(),
        "second.weight": state["second.weight"],
    }


def test_two_layers_in_one_tensor_are_cut_from_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places_module, "revert_weight_conversion", lambda _model, state: fused(state))
    found = weight_places(Pair(), ())
    assert found.cut == {
        "first.weight": Rows("both.weight", 0, 4),
        "second.weight": Rows("both.weight", 4, 6),
    }
    assert found.shapes == {"both.weight": (6, 6)}
    assert not found.unknown


@pytest.mark.parametrize(
    ("conversion", "unknown"),
    [
        (interleaved, {"both.weight", "rest.weight"}),
        (reversed_rows, {"first.weight"}),
        (transposed, {"first.weight"}),
        (padded, {"first.weight"}),
        (reading_values, {"first.weight"}),
        (with_a_gap, {"part.weight"}),
        (exchanged, {"first.weight", "second.weight"}),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_any_other_conversion_is_unknown(
    conversion: Callable[[State], State], unknown: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(places_module, "revert_weight_conversion", lambda _model, state: conversion(state))
    found = weight_places(Pair(), ())
    assert found.unknown == unknown
    assert not found.cut
    assert not found.joined
