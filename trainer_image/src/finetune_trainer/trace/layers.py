"""Finds the layers of a model, their kinds, and the few that a trace needs.

Layers of one kind have the same modules, shapes and settings, so they allocate the same. A trace runs the first layer, the
last one and one of each kind between them. The others take no time and no memory.
"""

from __future__ import annotations

import re
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

import torch

_OWN_POSITION = re.compile(r"^_?layer_?(idx|id|index|number)$")
_COUNTS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")


@dataclass(frozen=True)
class LayerList:
    """The list of a model's layers: its module, the attribute that holds it, and the kind of each layer."""

    path: str
    kinds: tuple[int, ...]
    """A number for each kind, in the order of the layers."""


class NoLayersError(ValueError):
    """The model has no list of layers."""


def find_layers(model: Any) -> LayerList:
    """Return the longest list of layers with the most parameters.

    Raises NoLayersError if there is none, or if its layers are shared between places.
    """
    found = [
        (sum(p.numel() for p in module.parameters()), path, module)
        for path, module in model.named_modules()
        if isinstance(module, torch.nn.ModuleList)
    ]
    if not found:
        raise NoLayersError(f"a model must have a list of layers, found none in {type(model).__name__}")
    _, path, layers = max(found, key=lambda entry: entry[0])
    if len({id(layer) for layer in layers}) != len(layers):
        raise NoLayersError(f"each layer must have its own place, found shared ones in {path}")
    lists = _layer_lists(_config_of(model, path), len(layers))
    numbers: dict[Hashable, int] = {}
    kinds = []
    for position, layer in enumerate(layers):
        told = tuple((name, _plain(values[position])) for name, values in sorted(lists.items()))
        kinds.append(numbers.setdefault((told, _signature(layer)), len(numbers)))
    return LayerList(path, tuple(kinds))


def sampled_layers(kinds: tuple[int, ...]) -> tuple[int, ...]:
    """Return the positions of the layers to trace: the first, the last, and the last one of each kind between them."""
    last = len(kinds) - 1
    chosen = {0, last}
    for kind in set(kinds[1:last]):
        chosen.add(max(position for position in range(1, last) if kinds[position] == kind))
    return tuple(sorted(chosen))


def stand_ins(kinds: tuple[int, ...], sampled: tuple[int, ...]) -> tuple[int, ...]:
    """Return for each layer the index in `sampled` of the layer that stands for it."""
    inner = {
        kinds[position]: index for index, position in enumerate(sampled) if 0 < position < len(kinds) - 1
    }
    own = {position: index for index, position in enumerate(sampled)}
    return tuple(own[position] if position in own else inner[kind] for position, kind in enumerate(kinds))


def keep_layers(model: Any, path: str, positions: tuple[int, ...]) -> None:
    """Remove all layers of the list at `path` but those at `positions`. The config then describes the rest."""
    parent, _, name = path.rpartition(".")
    owner = model.get_submodule(parent) if parent else model
    layers = getattr(owner, name)
    config = _config_of(model, path)
    count = len(layers)
    for member, values in _layer_lists(config, count).items():
        setattr(config, member, [values[position] for position in positions])
    for member in _COUNTS:
        if getattr(config, member, None) == count:
            setattr(config, member, len(positions))
    kept = [layers[position] for position in positions]
    for position, layer in enumerate(kept):
        for module in layer.modules():
            for member, value in list(vars(module).items()):
                if _OWN_POSITION.search(member) and value == positions[position] and type(value) is int:
                    setattr(module, member, position)
    setattr(owner, name, torch.nn.ModuleList(kept))


def _config_of(model: Any, path: str) -> Any:
    parent = path.rpartition(".")[0]
    owner = model.get_submodule(parent) if parent else model
    return getattr(owner, "config", model.config)


def _layer_lists(config: Any, count: int) -> dict[str, list[Any]]:
    """Return the members of a config that have a value for each layer."""
    if count < 2:
        return {}
    return {
        name: list(value)
        for name, value in vars(config).items()
        if isinstance(value, list | tuple) and len(value) == count and not name.startswith("_")
    }


def _signature(layer: torch.nn.Module) -> Hashable:
    """Return what decides the allocations of a layer: modules, shapes, types and settings, but not its position.

    Numbers with a fraction, such as a scale, change values only.
    """
    modules = []
    for path, module in layer.named_modules():
        tensors = tuple(
            (name, tuple(tensor.shape), tensor.dtype)
            for name, tensor in (
                *module.named_parameters(recurse=False),
                *module.named_buffers(recurse=False),
            )
        )
        settings = tuple(
            (name, value)
            for name, value in sorted(vars(module).items())
            if not name.startswith("_")
            and not _OWN_POSITION.search(name)
            and (value is None or isinstance(value, bool | int | str))
        )
        modules.append((path, type(module), tensors, settings))
    return tuple(modules)


def _plain(value: Any) -> Hashable:
    return value if isinstance(value, bool | int | float | str | None) else repr(value)
