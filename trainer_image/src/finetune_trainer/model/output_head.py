"""Computes logits from hidden states, a few positions at a time, for training and scoring."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from finetune_trainer.errors import Reason, StageError

if TYPE_CHECKING:
    from collections.abc import Iterator

# Logits in float32 are the largest tensors of a loss; 128 MiB of them exist at once.
_LOGITS_AT_ONCE = 1 << 25
_PROBE_TOKENS = 8
_PROBE_PADDING = 3
# Rounding error as a fraction of the largest logit: for sums in the same order, and in another order.
TOLERANCE = {torch.float32: (1e-4, 1e-3), torch.bfloat16: (2e-2, 6e-2)}
# Members of a config that families multiply their logits by (Cohere, Muse, Falcon-H1).
_MULTIPLIERS = ("logit_scale", "output_multiplier", "lm_head_multiplier")


@dataclass(frozen=True)
class OutputHead:
    """The projection onto the vocabulary: logits = softcap * tanh(scale * projection(hidden) / softcap).

    Without a softcap the logits are scale * projection(hidden). `softcap` is Gemma's final_logit_softcapping.
    """

    projection: torch.nn.Linear
    scale: float
    softcap: float | None

    def bounded(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return the scaled projections of hidden states (positions, width); with a softcap, their tanh.

        The factor of the softcap is not applied. The caller may change the tensor.
        """
        # FSDP2 counts the calls of its modules, and ranks project other numbers of chunks.
        project = self.projection.forward if hasattr(self.projection, "unshard") else self.projection
        projected: torch.Tensor = project(hidden)
        if self.scale != 1:
            projected.mul_(self.scale)
        if self.softcap is not None:
            projected.div_(self.softcap).tanh_()
        return projected

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return the logits (positions, vocabulary) in float32. The caller may change the tensor."""
        bounded = self.bounded(hidden).float()
        return bounded if self.softcap is None else bounded.mul_(self.softcap)


def loss_chunk(vocabulary: int) -> int:
    """Return the number of positions that are projected onto a vocabulary of this size at once."""
    return max(1, _LOGITS_AT_ONCE // vocabulary)


def chunks(count: int, vocabulary: int) -> Iterator[slice]:
    """Cut `count` positions into slices of `loss_chunk` positions."""
    size = loss_chunk(vocabulary)
    return (slice(first, min(first + size, count)) for first in range(0, count, size))


def is_sharded(model: Any) -> bool:
    """Return whether the weights of a language model are shared out to ranks (`model.sharding`)."""
    return hasattr(language_model(model).get_input_embeddings(), "unshard")


@contextmanager
def gathered(module: Any) -> Iterator[None]:
    """Have the whole weights of a `module` inside of the `with` statement, if ranks share them. Then all must enter it."""
    if not hasattr(module, "unshard"):
        yield
        return
    module.unshard()
    try:
        yield
    finally:
        module.reshard()


def language_model(model: Any) -> Any:
    """Return the causal language model without peft's wrapper; its adapted layers stay."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def hidden_states(model: Any, input_ids: torch.Tensor) -> torch.Tensor:
    """Return the hidden states (rows, length, width) of right-padded rows (rows, length), as the head projects them.

    No mask is passed, because in a causal model a token never attends to the padding after it. A mask would take a
    byte for each pair of positions, and it would exclude attention's memory-saving kernel.
    """
    states: torch.Tensor = body_outputs(model, input_ids).last_hidden_state
    return states


def body_outputs(model: Any, input_ids: torch.Tensor, **settings: Any) -> Any:
    """Return all that the body of a model gives for rows (rows, length), without a mask as in `hidden_states`."""
    return body(language_model(model))(input_ids=input_ids, use_cache=False, **settings)


def body(causal: Any) -> Any:
    """Return the part of a causal language model that computes hidden states."""
    found = causal.base_model
    # The prefix of some text models is that of their multimodal family, where they have no such member.
    return getattr(causal, "model", found) if found is causal else found


def output_head(model: Any) -> OutputHead:
    """Return the head of a causal language model as its config describes it; `prove_head` checks it."""
    causal = language_model(model)
    config = causal.config.get_text_config()
    scale = next(
        (float(value) for name in _MULTIPLIERS if (value := getattr(config, name, None)) is not None), 1.0
    )
    divisor = getattr(config, "logits_scaling", None)
    if divisor is not None:
        # Granite divides by it; HyperCLOVA X multiplies by the member of the same name.
        scale = float(divisor) if config.model_type == "hyperclovax" else 1.0 / float(divisor)
    return OutputHead(causal.get_output_embeddings(), scale, getattr(config, "final_logit_softcapping", None))


@torch.no_grad()
def prove_head(model: Any) -> None:
    """Prove on a few tokens that hidden states and head give the model's own logits, for padded rows too.

    Raises StageError(UnsupportedModel) if the architecture computes its logits in another way, or if its tokens attend
    to later ones.
    """
    causal = language_model(model)
    head = output_head(model)
    vocabulary = causal.config.get_text_config().vocab_size
    device = causal.get_input_embeddings().weight.device
    ids = torch.linspace(1, vocabulary - 1, _PROBE_TOKENS, device=device).long()[None]
    padded = torch.nn.functional.pad(ids, (0, _PROBE_PADDING))
    training = causal.training
    causal.eval()
    with gathered(head.projection):
        own = causal(input_ids=ids, use_cache=False).logits[0].float()
        found = head.logits(hidden_states(model, ids)[0])
        with_padding = head.logits(hidden_states(model, padded)[0, :_PROBE_TOKENS])
    causal.train(training)
    tolerances = TOLERANCE[causal.dtype]
    for logits, tolerance, what in zip(
        (found, with_padding),
        tolerances,
        ("projecting its hidden states", "padding a row on the right, unmasked,"),
        strict=True,
    ):
        difference = float((logits - own).abs().max())
        largest = float(own.abs().max())
        # NaN compares false, so it passes here; the loss reports it with the step.
        if difference > tolerance * largest:
            raise StageError(
                Reason.UNSUPPORTED_MODEL,
                f"{what} must give the model's own logits (largest {largest:.3g}), found a "
                f"difference of {difference:.3g} in {type(causal).__name__}; choose another model",
            )
