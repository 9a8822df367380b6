"""Layers of one kind are found by their structure, and a few of them stand for all."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from finetune_trainer.trace.layers import NoLayersError, find_layers, keep_layers, sampled_layers, stand_ins


class Layer(torch.nn.Module):
    def __init__(self, position: int, width: int = 4, window: int | None = None) -> None:
        super().__init__()
        self.layer_idx = position
        self.sliding_window = window
        self.scaling = 0.5 + position
        self.projection = torch.nn.Linear(width, width)


class Model(torch.nn.Module):
    def __init__(self, layers: list[torch.nn.Module], **config: Any) -> None:
        super().__init__()
        self.config = SimpleNamespace(num_hidden_layers=len(layers), **config)
        self.layers = torch.nn.ModuleList(layers)
        self.others = torch.nn.ModuleList([torch.nn.Linear(1, 1)])


def test_position_and_scale_make_no_kind_but_shapes_and_settings_do() -> None:
    model = Model([Layer(0), Layer(1), Layer(2, window=8), Layer(3, width=5), Layer(4)])
    found = find_layers(model)
    assert (found.path, found.kinds) == ("layers", (0, 0, 1, 2, 0))


def test_a_list_of_the_config_makes_kinds() -> None:
    types = ["full", "window", "full"]
    model = Model([Layer(index) for index in range(3)], layer_types=types, eos_token_id=[1, 2])
    assert find_layers(model).kinds == (0, 1, 0)


def test_first_last_and_one_of_each_kind_between_are_sampled() -> None:
    kinds = (0, 0, 1, 0, 0, 1, 0, 0)
    assert sampled_layers(kinds) == (0, 5, 6, 7)
    assert stand_ins(kinds, sampled_layers(kinds)) == (0, 2, 1, 2, 2, 1, 2, 3)
    assert sampled_layers((0,)) == (0,)
    assert stand_ins((0,), (0,)) == (0,)
    assert sampled_layers((0, 1)) == (0, 1)


def test_kept_layers_know_their_new_position_and_the_config_tells_of_them_alone() -> None:
    model = Model(
        [Layer(index, window=8 if index % 2 else None) for index in range(6)],
        layer_types=["a", "b"] * 3,
        other=[1, 2],
    )
    keep_layers(model, "layers", (0, 3, 5))
    assert [layer.layer_idx for layer in model.layers] == [0, 1, 2]
    assert [layer.scaling for layer in model.layers] == [0.5, 3.5, 5.5]
    assert model.config.layer_types == ["a", "b", "b"]
    assert (model.config.num_hidden_layers, model.config.other) == (3, [1, 2])


def test_a_model_without_layers_of_its_own_is_none() -> None:
    with pytest.raises(NoLayersError, match="list of layers"):
        find_layers(torch.nn.Linear(1, 1))
    shared = Layer(0)
    with pytest.raises(NoLayersError, match="shared"):
        find_layers(Model([shared, shared]))
