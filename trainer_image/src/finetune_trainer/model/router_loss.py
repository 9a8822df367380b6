"""The loss that balances the load of a mixture's experts, by the function of the model's own code.

It is the number of experts times the sum over them of the share of tokens that they get, times their mean probability (Fedus
et al. 2021, equations 4 to 6). Routers are not trained, but their inputs depend on the adapters of earlier layers.
"""

from __future__ import annotations

import inspect
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from finetune_trainer.errors import Reason, StageError
from finetune_trainer.model.output_head import body, language_model

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

_FUNCTION = "load_balancing_loss_func"
_PARAMETERS = ["gate_logits", "num_experts", "top_k", "attention_mask"]
_COUNTS = ("num_experts", "num_local_experts")
_CHOSEN = "num_experts_per_tok"


@dataclass(frozen=True)
class RouterLoss:
    """The model's own function, with its numbers of experts and of those that each token gets."""

    function: Callable[..., torch.Tensor]
    experts: int
    chosen: int

    def value(self, logits: tuple[torch.Tensor, ...], real: torch.Tensor | None) -> torch.Tensor:
        """Return the loss of a pass, from the logits (tokens, experts) of each router.

        `real` (rows, length) marks tokens that are no padding; None says that all are real.
        """
        if not logits:
            raise RuntimeError("the routers of a mixture of experts must give their logits, found none")
        return self.function(logits, self.experts, self.chosen, real)


def router_loss(model: Any) -> RouterLoss:
    """Return the load-balancing loss of a causal language model. Raises StageError(UnsupportedModel) if it has none."""
    obstacle = router_loss_obstacle(model)
    if obstacle is not None:
        raise no_router_loss(obstacle)
    causal = language_model(model)
    function = getattr(sys.modules[type(causal).__module__], _FUNCTION)
    return RouterLoss(function, _number(causal, *_COUNTS), _number(causal, _CHOSEN))


def router_loss_obstacle(model: Any) -> str | None:
    """Return why a causal language model, which may be on the meta device, has no load-balancing loss; None if it has one."""
    causal = language_model(model)
    name = type(causal).__name__
    function = getattr(sys.modules[type(causal).__module__], _FUNCTION, None)
    if function is None:
        return f"{name}, whose code has no such loss"
    if list(inspect.signature(function).parameters) != _PARAMETERS:
        return f"{name}, whose loss takes other arguments"
    recorded = _recorded(causal)
    if recorded is None:
        return f"{name}, whose routers do not give their logits"
    if not any(isinstance(module, recorded) for module in causal.modules()):
        return f"{name} without a layer of experts"
    if _number(causal, *_COUNTS) < 1 or _number(causal, _CHOSEN) < 1:
        return f"{name}, whose config.json does not count its experts"
    return None


def no_router_loss(obstacle: str) -> StageError:
    """Return the error of a model without a load-balancing loss."""
    return StageError(
        Reason.UNSUPPORTED_MODEL,
        "with training.routerAuxLossCoefficient the model must be a mixture of experts whose own code has a load-balancing "
        f"loss, found {obstacle}; remove the field, or choose another model",
    )


def _recorded(causal: Any) -> type | None:
    """Return the class of the routers, whose outputs transformers records."""
    recorder = (getattr(body(causal), "_can_record_outputs", None) or {}).get("router_logits")
    found = getattr(recorder, "target_class", recorder)
    return found if isinstance(found, type) else None


def _number(causal: Any, *names: str) -> int:
    config = causal.config.get_text_config()
    held = (getattr(owner, name, None) for owner in (causal, config) for name in names)
    return next((value for value in held if type(value) is int), 0)
