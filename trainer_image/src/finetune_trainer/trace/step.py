"""Runs parts of the trainer's step on fake tensors: the model with its adapter, a pass, an optimizer, an evaluation.

The trainer's own functions build the model, the adapter, the loss, the optimizer and the evaluation. So a change of memory
there changes the trace. States of the paged optimizer count as device memory, where they are while in use. What a fake run
cannot see is not in the trace: the CUDA context, workspaces of libraries and fragmentation.
"""

from __future__ import annotations

import copy
import gc
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
from torch._subclasses.fake_tensor import unset_fake_temporarily
from torch.utils._python_dispatch import _disable_current_modes
from transformers import Trainer

from finetune_trainer.data.masking.example import Example
from finetune_trainer.evaluation.scoring import supervised_log_probabilities
from finetune_trainer.model.dequantized import dequantize_weights
from finetune_trainer.model.load import cast_model, compute_dtype
from finetune_trainer.stages.train.adapter import add_adapter
from finetune_trainer.stages.train.loss import Objective
from finetune_trainer.stages.train.optimizers import with_optimizer
from finetune_trainer.stages.train.passes import Pass
from finetune_trainer.stages.train.settings import sft_config
from finetune_trainer.trace.allocations import Allocations, rounded
from finetune_trainer.trace.fake_model import (
    UntraceableError,
    adaptable_modules,
    give_fake_tensors,
    quantized_structure,
    resident_bytes,
)
from finetune_trainer.trace.segments import PassSegments, Segment

if TYPE_CHECKING:
    from finetune_trainer.contract.run_spec import Optimizer, RunSpec

_DEVICE = "cuda"
_OUTPUT = Path("/output")


@dataclass(frozen=True)
class Sizes:
    """Bytes, or a number of things, outside of the traced layers and in each traced layer."""

    outside: int
    layers: tuple[int, ...]


@dataclass(frozen=True)
class OptimizerSizes:
    """The states of an optimizer, and what a step of it needs for a moment."""

    states: Sizes
    transient: int


class AdaptedModel:
    """A model on fake tensors with a new adapter, ready for a pass. Build it inside a FakeTensorMode.

    `structure` is a `fake_model.plain_structure`, and stays as it is. `path` names its list of layers; None counts the
    whole model as outside of layers.
    """

    def __init__(self, structure: Any, path: str | None, run: RunSpec, tracked: Allocations) -> None:
        self._tracked = tracked
        self._run = run
        with _disable_current_modes():
            # A structure is no allocation. 4-bit parameters on the meta device cannot be copied, so they are made anew.
            model = quantized_structure(copy.deepcopy(structure))
        # Garbage of another model must not count, and must not vanish while something is measured.
        gc.collect()
        before = tracked.current
        tracked.forget_peaks()
        tracked.enter("load")
        give_fake_tensors(model)
        cast_model(model, compute_dtype(_DEVICE))
        self.quantized = adaptable_modules(model)
        if run.training.weights == "Dequantized":
            dequantize_weights(model)
        self._layers: tuple[Any, ...] = () if path is None else tuple(model.get_submodule(path))
        self.model = add_adapter(model, run.training.lora, self.quantized)
        self._objective = Objective.of(self.model, run.training.router_aux_loss_coefficient)
        self.load_transient = tracked.peaks["load"] - tracked.current
        gc.collect()
        held = tuple(resident_bytes(layer) for layer in self._layers)
        self.weights = Sizes(tracked.current - before - sum(held), held)
        settings = sft_config(run, _OUTPUT, 2)
        if settings.gradient_checkpointing:
            # As in TRL's and transformers' trainers, with the settings of our trainer.
            self.model.enable_input_require_grads()
            self.model.gradient_checkpointing_enable(settings.gradient_checkpointing_kwargs)

    @property
    def trained(self) -> list[torch.nn.Parameter]:
        """The parameters of the adapter."""
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]

    @property
    def gradients(self) -> Sizes:
        """Bytes of all gradients."""
        return self._sizes({id(parameter): rounded(parameter.nbytes) for parameter in self.trained})

    @property
    def trained_parameters(self) -> Sizes:
        """Numbers of trained parameters."""
        return self._sizes({id(parameter): parameter.numel() for parameter in self.trained})

    def optimizer(self, optimizer: Optimizer) -> OptimizerSizes:
        """Take a step with an optimizer, and return what it keeps."""
        settings = sft_config(with_optimizer(self._run, optimizer), _OUTPUT, 2)
        kind, arguments = Trainer.get_optimizer_cls_and_kwargs(settings, self.model)
        trained = self.trained
        with unset_fake_temporarily():
            # bitsandbytes computes its code tables, which reads values.
            created = kind(trained, **arguments)
        for parameter in trained:
            parameter.grad = torch.empty_like(parameter)
        tracked = self._tracked
        tracked.forget_peaks()
        tracked.enter("optimizer")
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), settings.max_grad_norm)
        created.step()
        transient = tracked.peaks["optimizer"] - tracked.current
        kept: dict[int, int] = {}
        for parameter in trained:
            tensors = [one for one in created.state[parameter].values() if isinstance(one, torch.Tensor)]
            storages = {
                one.untyped_storage()._cdata: rounded(one.untyped_storage().nbytes()) for one in tensors
            }
            kept[id(parameter)] = sum(storages.values())
        self.model.zero_grad()
        return OptimizerSizes(self._sizes(kept), max(0, transient))

    def step(self, rows: int, length: int, *, accumulates: bool) -> tuple[int, PassSegments]:
        """Run the passes of a step that needs the most memory; return the bytes of its batch, and its segments.

        It has `rows` rows of `length` tokens, each of which is learned. With `accumulates`, gradients of an earlier pass
        exist already.
        """
        tracked = self._tracked
        self.model.train()
        if accumulates:
            for parameter in self.trained:
                parameter.grad = torch.empty_like(parameter)
        before = tracked.current
        one = _longest(rows, length)
        batch = tracked.current - before
        tracked.forget_peaks()
        with _Marks(self._layers, tracked) as marks:
            tracked.enter("before")
            loss, balance = self._objective.parts(self.model, one)
            loss = self._objective.total(loss / one.tokens, balance)
            marks.backward = True
            tracked.enter("loss end")
            loss.backward()
            del loss, balance
            tracked.enter("done")
        found = marks.segments(backward=True)
        self.model.zero_grad()
        return batch, found

    def evaluation(self, rows: int, length: int) -> PassSegments:
        """Score `rows` rows of `length` tokens, as TRAIN scores the tuned model."""
        tracked = self._tracked
        self.model.eval()
        ids = list(range(length))
        tracked.forget_peaks()
        with _Marks(self._layers, tracked) as marks:
            tracked.enter("before")
            scored = supervised_log_probabilities(self.model, [Example(ids, ids, row) for row in range(rows)])
            del scored
            tracked.enter("done")
        return marks.segments(backward=False)

    def _sizes(self, size_of: dict[int, int]) -> Sizes:
        layers = tuple(
            sum(size_of.get(id(parameter), 0) for parameter in layer.parameters()) for layer in self._layers
        )
        return Sizes(sum(size_of.values()) - sum(layers), layers)


def _longest(rows: int, length: int) -> Pass:
    """Return a pass of padded rows that supervises every token, which is the maximum of a batch."""
    count = rows * (length - 1)
    ids = torch.zeros((rows, length), dtype=torch.long)
    places, targets = (torch.zeros((count,), dtype=torch.long) for _ in range(2))
    return Pass(ids, places, targets, rows * length)


class _Marks:
    """Enters a phase of the allocations at each border of a layer, forward and backward.

    The gradient of a layer's input is complete when its backward pass has ended. With checkpointing, a layer runs again
    inside of its backward pass, which marks nothing.
    """

    def __init__(self, layers: tuple[Any, ...], tracked: Allocations) -> None:
        self._layers = layers
        self._tracked = tracked
        self._handles: list[Any] = []
        self.backward = False

    def __enter__(self) -> Self:
        for index, layer in enumerate(self._layers):
            self._handles.append(layer.register_forward_pre_hook(self._entering(index), with_kwargs=True))
        if self._layers:
            self._handles.append(self._layers[-1].register_forward_hook(self._leaving))
        return self

    def __exit__(self, *_error: object) -> None:
        for handle in self._handles:
            handle.remove()

    def segments(self, *, backward: bool) -> PassSegments:
        """Return the segments of the pass. Raises UntraceableError if a border was not passed exactly in order."""
        count = len(self._layers)
        ahead = ["before", *(f"forward {index}" for index in range(count)), *(["head"] if count else [])]
        back = ["loss end", *(f"backward {index}" for index in reversed(range(count)))] if backward else []
        back += ["end"] if count and backward else []
        labels = [*ahead, *back]
        # Without a gradient for the input of the first layer, nothing tells the end of its backward pass.
        if "end" in labels and "end" not in self._tracked.starts:
            labels.remove("end")
        passed = [label for label in self._tracked.starts if label != "done"]
        if passed != labels:
            raise UntraceableError(f"the layers must run one after another, found {passed}")
        followers = [*labels[1:], "done"]
        found = {
            label: self._segment(label, follower) for label, follower in zip(labels, followers, strict=True)
        }
        nothing = Segment(0, 0)
        return PassSegments(
            before=found["before"],
            forward=tuple(found[f"forward {index}"] for index in range(count)),
            head=found.get("head", nothing),
            loss_end=found.get("loss end"),
            backward=tuple(found[f"backward {index}"] for index in range(count)) if backward else (),
            end=found.get("end", nothing) if backward else None,
        )

    def _segment(self, label: str, follower: str) -> Segment:
        start = self._tracked.starts[label]
        return Segment(self._tracked.peaks[label] - start, self._tracked.starts[follower] - start)

    def _entering(self, index: int) -> Any:
        def enter(_layer: Any, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
            if self.backward:
                return
            states = arguments[0] if arguments else named.get("hidden_states")
            self._tracked.enter(f"forward {index}")
            self._mark_gradient(states, f"backward {index - 1}" if index else "end")

        return enter

    def _leaving(self, _layer: Any, _arguments: Any, output: Any) -> None:
        if self.backward:
            return
        self._tracked.enter("head")
        states = output[0] if isinstance(output, tuple) else output
        self._mark_gradient(states, f"backward {len(self._layers) - 1}")

    def _mark_gradient(self, states: Any, label: str) -> None:
        if isinstance(states, torch.Tensor) and states.requires_grad:
            states.register_hook(lambda _gradient: self._tracked.enter(label))
