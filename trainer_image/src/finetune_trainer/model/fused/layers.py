"""Puts fused kernels into the layers of a loaded model, and lets them compute only while a step of the training runs.

A layer keeps its place, its name and its parameters: only its class is replaced by a subclass. Outside of `active` every
layer computes as before, so evaluations, records and the proof of MERGE have the reference path.
"""

from __future__ import annotations

import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

import torch

from finetune_trainer.model.output_head import language_model

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from finetune_trainer.model.fused.policy import Kernel, NormForm

_ROTATION = "apply_rotary_pos_emb"
"""Name of the function that the attentions of transformers call for the rotary embedding."""
FORMS: dict[NormForm, tuple[float, bool]] = {
    "RoundFirst": (0.0, True),
    "RoundLast": (0.0, False),
    "OneMore": (1.0, False),
}
"""What is added to the weight of a norm, and whether its input is rounded before the scaling."""


class KernelSet(Protocol):
    """The kernels that a device has. `model.fused.triton_kernels` has the shapes."""

    def rms_norm(
        self, inputs: torch.Tensor, weight: torch.Tensor, epsilon: float, *, added: float, rounds: bool
    ) -> torch.Tensor:
        """Return the scaled rows of `inputs`, each over its root mean square."""

    def rotate(self, inputs: torch.Tensor, cosines: torch.Tensor, sines: torch.Tensor) -> torch.Tensor:
        """Return the heads of `inputs`, rotated by the angles of their tokens."""

    def gate(self, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        """Return silu(`gate`) * `up`."""


class _Switch:
    """Whether the kernels of a model compute at the moment."""

    def __init__(self, kernels: KernelSet) -> None:
        self.kernels = kernels
        self.on = False


class FusedLayers:
    """The kernels `used` of a model. Without any, `active` changes nothing."""

    def __init__(
        self, used: Collection[Kernel] = (), switch: _Switch | None = None, module: Any = None
    ) -> None:
        self.used = tuple(used)
        self._switch = switch
        self._module = module
        """The Python module with the function of the rotary embedding, if its kernel is used."""

    @contextmanager
    def active(self) -> Iterator[None]:
        """Let the kernels compute inside of the `with` statement, which must last until the backward pass has ended."""
        if self._switch is None:
            yield
            return
        self._switch.on = True
        reference = None if self._module is None else getattr(self._module, _ROTATION)
        if reference is not None:
            setattr(self._module, _ROTATION, _Rotation(self._switch.kernels, reference))
        try:
            yield
        finally:
            self._switch.on = False
            if reference is not None:
                setattr(self._module, _ROTATION, reference)


def install(model: Any, kernels: KernelSet, used: Collection[Kernel], form: NormForm) -> FusedLayers:
    """Put the kernels `used` into the layers of `model`; `form` is that of its norms. It has an adapter already."""
    if not used:
        return FusedLayers()
    switch = _Switch(kernels)
    if "RmsNorm" in used:
        for layer in norms(model):
            _replace(layer, _FusedNorm, switch, form)
    if "SwiGlu" in used:
        for layer in gated_mlps(model):
            _replace(layer, _FusedMlp, switch)
    return FusedLayers(used, switch, rotation_module(model) if "Rope" in used else None)


def norms(model: Any) -> list[Any]:
    """Return the layers that divide by a root mean square and scale by a frozen weight."""
    return [
        layer
        for layer in language_model(model).modules()
        if type(layer).__name__.endswith("RMSNorm")
        and getattr(layer, "weight", None) is not None
        and layer.weight.dim() == 1
        and not layer.weight.requires_grad
        and epsilon_of(layer) is not None
    ]


def epsilon_of(layer: Any) -> float | None:
    """Return what a norm adds to the mean square; None if it has another name in this layer."""
    found = getattr(layer, "variance_epsilon", getattr(layer, "eps", None))
    return None if found is None else float(found)


def gated_mlps(model: Any) -> list[Any]:
    """Return the layers that project down silu(gate) times up."""
    return [
        layer
        for layer in language_model(model).modules()
        if type(layer).__name__.endswith("MLP")
        and all(hasattr(layer, name) for name in ("gate_proj", "up_proj", "down_proj", "act_fn"))
    ]


def rotation_module(model: Any) -> Any:
    """Return the Python module of the model's layers if it has the function of the rotary embedding, else None."""
    module = sys.modules.get(type(language_model(model)).__module__)
    return module if hasattr(module, _ROTATION) else None


def _replace(layer: Any, kind: type, switch: _Switch, form: NormForm = "RoundFirst") -> None:
    own = type(layer)
    # An instance attribute would hold the layer itself, and with it the memory of a failed rung.
    layer.__class__ = type(own.__name__, (kind, own), {"__module__": own.__module__})
    vars(layer)["fused_switch"], vars(layer)["fused_form"] = switch, form


class _FusedNorm:
    """A norm whose kernel computes while the switch is on."""

    def forward(self: Any, hidden_states: torch.Tensor) -> torch.Tensor:
        """Map (..., width) to the same shape."""
        switch: _Switch = self.fused_switch
        if switch.on and hidden_states.dtype == self.weight.dtype:
            return normed(switch.kernels, self, hidden_states, self.fused_form)
        found: torch.Tensor = super().forward(hidden_states)  # type: ignore[misc]  # the norm's own class follows
        return found


class _FusedMlp:
    """An MLP whose gate's kernel computes while the switch is on."""

    def forward(self: Any, x: torch.Tensor) -> torch.Tensor:
        """Map (..., width) to the same shape."""
        switch: _Switch = self.fused_switch
        if switch.on:
            found: torch.Tensor = self.down_proj(switch.kernels.gate(self.gate_proj(x), self.up_proj(x)))
        else:
            found = super().forward(x)  # type: ignore[misc]  # the MLP's own class follows
        return found


class _Rotation:
    """The function of the rotary embedding with the kernel, for the arguments that the kernel knows."""

    def __init__(self, kernels: KernelSet, reference: Any) -> None:
        self._kernels = kernels
        self._reference = reference

    def __call__(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        cos: torch.Tensor,
        sin: torch.Tensor,
        *arguments: Any,
        **settings: Any,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if not arguments and not settings and cos.dtype == q.dtype and cos.shape[-1] == q.shape[-1]:
            return self._kernels.rotate(q, cos, sin), self._kernels.rotate(k, cos, sin)
        found: tuple[torch.Tensor, torch.Tensor] = self._reference(q, k, cos, sin, *arguments, **settings)
        return found


def normed(kernels: KernelSet, layer: Any, inputs: torch.Tensor, form: NormForm) -> torch.Tensor:
    """Return what the norm `layer` makes of `inputs`, by the kernel."""
    added, rounds = FORMS[form]
    epsilon = epsilon_of(layer)
    assert epsilon is not None  # noqa: S101 -- for mypy: `norms` chose the layer by it
    return kernels.rms_norm(inputs, layer.weight, epsilon, added=added, rounds=rounds)


def rotated(
    kernels: KernelSet, q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return queries and keys, rotated by the kernel."""
    return kernels.rotate(q, cos, sin), kernels.rotate(k, cos, sin)
