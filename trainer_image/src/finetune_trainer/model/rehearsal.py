"""Tries a model before its weights are fetched: its layers must fit together, and its head must be understood.

TRAIN would find the same faults, but after hours of PREPARE and on a GPU. A trial that cannot run proves nothing, and TRAIN
then decides.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers.modeling_outputs import BaseModelOutputWithPast

from finetune_trainer.errors import Reason, StageError
from finetune_trainer.model.output_head import OutputHead, output_head

_log = logging.getLogger(__name__)

_TOKENS = 8
_VOCABULARY = 32
_SEED = 5
# Rounding error of float32, as a fraction of the largest logit.
_TOLERANCE = 1e-4
# torch names sizes or shapes if the operands of an operation do not fit together. It names the meta device if it has no
# such operation there, which says nothing about the model.
_MISFIT = re.compile(r"size|shape|dimension|reduction dim", re.IGNORECASE)
_META = re.compile(r"meta", re.IGNORECASE)


@torch.no_grad()
def rehearse(model: Any) -> None:
    """Compute a few tokens of a causal language model on the meta device, and its logits from random hidden states.

    Raises StageError(InvalidModel) if its layers do not fit together, and StageError(UnsupportedModel) if it computes its
    logits in another way than `output_head.output_head` describes. The model stays as it is.
    """
    training = model.training
    model.eval()
    try:
        _rehearse_layers(model)
        _rehearse_head(model)
    finally:
        model.train(training)


def _rehearse_layers(model: Any) -> None:
    ids = torch.zeros((1, _TOKENS), dtype=torch.long, device="meta")
    try:
        # Without a cache, transformers looks at values of positions, which a meta tensor does not have.
        model(input_ids=ids, use_cache=True)
    except Exception as error:
        text = str(error)
        # Other errors, such as an attribute `shape` that is missing, are about the trial.
        if isinstance(error, RuntimeError) and _MISFIT.search(text) and not _META.search(text):
            raise StageError(
                Reason.INVALID_MODEL,
                f"config.json must describe layers that fit together, found in {type(model).__name__}: "
                f"{text.splitlines()[0]}; compare config.json with the original model's",
            ) from error
        _log.debug("the layers of %s cannot be tried", type(model).__name__, exc_info=True)


def _rehearse_head(model: Any) -> None:
    generator = torch.Generator().manual_seed(_SEED)
    found = output_head(model)
    width = found.projection.in_features
    states = torch.randn((1, _TOKENS, width), generator=generator)
    small = torch.nn.Linear(width, _VOCABULARY, bias=found.projection.bias is not None)
    for parameter in small.parameters():
        torch.nn.init.normal_(parameter, generator=generator)
    head = OutputHead(small, found.scale, found.softcap)
    try:
        with _replaced(model, _States(states), small):
            own = model(input_ids=torch.zeros((1, _TOKENS), dtype=torch.long), use_cache=False).logits[0]
    except Exception:  # noqa: BLE001 -- some models look inside their body; TRAIN proves their heads
        _log.debug("the head of %s cannot be tried", type(model).__name__, exc_info=True)
        return
    difference = float((head.logits(states[0]) - own.float()).abs().max())
    largest = float(own.abs().max())
    if not difference <= _TOLERANCE * largest:
        raise StageError(
            Reason.UNSUPPORTED_MODEL,
            f"the logits must be the hidden states times the output matrix, scaled or capped by members of config.json "
            f"that are known, found another computation in {type(model).__name__}; choose another model",
        )


class _Output(BaseModelOutputWithPast):
    """Has every member that a family's own output has."""

    def __getattr__(self, name: str) -> None:
        if name.startswith("_"):
            raise AttributeError(name)


class _States(torch.nn.Module):
    """Stands for the body of a model: it returns the same hidden states for any input."""

    def __init__(self, states: torch.Tensor) -> None:
        super().__init__()
        self._states = states

    def forward(self, *_inputs: Any, **_settings: Any) -> BaseModelOutputWithPast:
        return _Output(last_hidden_state=self._states)


@contextmanager
def _replaced(model: Any, body: torch.nn.Module, head: torch.nn.Linear) -> Iterator[None]:
    """Give a model another body and output matrix for a while."""
    prefix = model.base_model_prefix
    before, projection = getattr(model, prefix), model.get_output_embeddings()
    setattr(model, prefix, body)
    model.set_output_embeddings(head)
    try:
        yield
    finally:
        model.set_output_embeddings(projection)
        setattr(model, prefix, before)
