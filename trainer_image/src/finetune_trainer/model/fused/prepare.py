"""Chooses the kernels of a run, tries them, and puts those that agree with the reference into the model."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from finetune_trainer.model.fused.layers import FusedLayers, install
from finetune_trainer.model.fused.policy import FAMILIES, KernelChoice, KernelFacts, choose_kernels
from finetune_trainer.model.fused.self_test import failures

if TYPE_CHECKING:
    from finetune_trainer.model.fused.device import DeviceKernels

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunKernels:
    """The kernels of a run: the choice, and the layers that have them."""

    choice: KernelChoice
    layers: FusedLayers


NO_KERNELS = RunKernels(KernelChoice(()), FusedLayers())
"""Those of a training that nobody has prepared any for."""


def prepare_kernels(
    model: Any, wish: str, available: DeviceKernels, begun: tuple[str, ...] | None
) -> RunKernels:
    """Return the kernels of a run with this adapted `model`, which has them afterwards.

    `begun` names those of the checkpoint from which the run continues, None for a new run. Raises the device's
    out-of-memory error.
    """
    config = model.config.get_text_config()
    family = str(config.model_type)
    choice = choose_kernels(
        KernelFacts(
            wish=wish,
            device=available.device,
            family=family,
            activation=_activation(config) if family in FAMILIES else "",
            capability=available.capability,
            missing=available.missing,
            begun=begun,
        )
    )
    layers = FusedLayers()
    if choice.used and available.kernels is not None:
        form = FAMILIES[family].norm
        choice = choice.without(failures(model, available.kernels, choice.used, form))
        layers = install(model, available.kernels, choice.used, form)
    _log.info("kernels: %s", choice.reason)
    lost = [name for name in begun or () if name not in choice.used]
    if lost:
        _log.warning("the run began with the kernels %s and continues without them", ", ".join(lost))
    return RunKernels(choice, layers)


def _activation(config: Any) -> str:
    """Return the activation of the MLPs. A config whose layers differ may have none of its own, and no kernel either."""
    return str(getattr(config, "hidden_activation", None) or getattr(config, "hidden_act", ""))
