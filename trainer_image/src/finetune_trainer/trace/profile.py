"""The memory profile of a model: its modules by kind, and the peak of each phase for each way to run a step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from finetune_trainer.model.packed_parameters import packed_parameters
from finetune_trainer.trace.allocations import Allocations
from finetune_trainer.trace.census import take_census
from finetune_trainer.trace.cuda_paths import cuda_paths
from finetune_trainer.trace.fake_model import build_config, plain_structure, quantized_structure
from finetune_trainer.trace.layers import find_layers, keep_layers, sampled_layers, stand_ins
from finetune_trainer.trace.packed import PackedSizes, combined, packed_sizes
from finetune_trainer.trace.segments import PassSegments, Segment, compose, total
from finetune_trainer.trace.sharing import shared_groups
from finetune_trainer.trace.step import AdaptedModel, OptimizerSizes, Sizes
from finetune_trainer.trace.ways import Way

if TYPE_CHECKING:
    from finetune_trainer.contract.run_spec import Lora, Optimizer, RunSpec, Weights
    from finetune_trainer.model.packed_parameters import PackedParameter


@dataclass(frozen=True)
class Peaks:
    """The peak of each phase in bytes, without the states of the optimizer."""

    load: int
    loss: int
    recompute: int
    optimizer: int
    evaluation: int


class Tracer:
    """Traces the ways to run a model.

    Only the layers of `layers.sampled_layers` run, and the others follow from them. With `whole`, all layers run. Raises
    UntraceableError for a config.json that no model can be built from.
    """

    def __init__(self, document: dict[str, Any], run: RunSpec, *, whole: bool = False) -> None:
        self._run = run.model_copy(update={"device": "cuda"})
        lora = run.training.lora
        structure = plain_structure(build_config(document))
        self._path: str | None = None
        self._layers: tuple[int, ...] = ()
        self.kinds: tuple[int, ...] = ()
        if not whole:
            found = find_layers(structure)
            self._path, self.kinds = found.path, found.kinds
            sampled = sampled_layers(found.kinds)
            self._layers = stand_ins(found.kinds, sampled)
            keep_layers(structure, found.path, sampled)
        self._experts = self._packed_sizes(structure, lora)
        places = (None, *self._layers)
        self._packed = combined(self._experts[place] for place in places if place in self._experts)
        entire = quantized_structure(plain_structure(build_config(document)))
        self.census = take_census(entire, lora.target_modules, self._packed)
        self.sharing = shared_groups(entire)
        self._structure = structure
        self._models: dict[tuple[Weights, bool], AdaptedModel] = {}
        self._optimizers: dict[Optimizer, OptimizerSizes] = {}
        self._evaluations: dict[tuple[Weights, int, int], int] = {}
        self._tracked = Allocations()

    @contextmanager
    def tracing(self) -> Iterator[Tracer]:
        """Let the other methods run on fake tensors during the context."""
        with FakeTensorMode(allow_non_fake_inputs=True), cuda_paths(), self._tracked:
            yield self

    def optimizer_states(self, optimizer: Optimizer) -> int:
        """Return the bytes of an optimizer's states."""
        return self._with_packed(self._total(self._optimizer(optimizer).states))

    def adapter_bytes(self) -> int:
        """Return the bytes of the adapter, which its gradients take once more."""
        return (
            self._total(self._model("Quantized", checkpointing=True).gradients) + self._packed.trained_bytes
        )

    def adapter_parameters(self) -> int:
        """Return the number of trained parameters, which are float32."""
        return self._linear_trained() + self._packed.trained

    def peaks(self, way: Way, optimizer: Optimizer) -> Peaks:
        """Return the peaks of a way to run a step, without the states of its `optimizer`."""
        model, packed = self._model(way.weights, checkpointing=way.checkpointing), self._packed
        weights = self._total(model.weights) - packed.plain_bytes + packed.bytes + packed.trained_bytes
        gradients = self._total(model.gradients) + packed.trained_bytes
        batch, segments = model.step(way.rows, way.length, accumulates=way.accumulates)
        step = compose(self._with_experts(segments, way), self._layers)
        tokens = way.rows * way.length
        # What belongs to a layer is in its segments.
        outside = self._experts.get(None, PackedSizes())
        held = weights + batch + (gradients if way.accumulates else 0)
        return Peaks(
            load=weights + model.load_transient,
            loss=held + outside.unpacked + step.forward + (0 if way.checkpointing else outside.kept(tokens)),
            recompute=held + step.backward + outside.backward(tokens, accumulates=way.accumulates),
            optimizer=weights + batch + gradients + self._with_packed(self._optimizer(optimizer).transient),
            evaluation=weights + batch + outside.unpacked + self._evaluation(way),
        )

    def _with_experts(self, traced: PassSegments, way: Way) -> PassSegments:
        """Add the unpacked matrices of each traced layer, what its adapters keep, and the gradients that it leaves.

        A layer unpacks matrices only while it runs. The output matrix, where many models peak, is not packed.
        """
        tokens, backward = way.rows * way.length, []
        for place, back in enumerate(traced.backward):
            sizes = self._experts.get(place, PackedSizes())
            needed = sizes.backward(tokens, accumulates=way.accumulates)
            # What was kept since the forward pass goes. Otherwise the layer runs again, and keeps it only meanwhile.
            gone = 0 if way.checkpointing else sizes.kept(tokens)
            # The gradients of earlier passes exist already, and take the new ones in.
            left = 0 if way.accumulates else sizes.trained_bytes
            backward.append(Segment(back.peak + needed - gone, back.left + left - gone))
        forward = self._with_unpacked(traced.forward, 0 if way.checkpointing else tokens)
        return replace(traced, forward=forward, backward=tuple(backward))

    def _with_unpacked(self, forward: Sequence[Segment], tokens: int = 0) -> tuple[Segment, ...]:
        """Add the unpacked matrices of each traced layer to a forward pass, and what its adapters keep of `tokens` tokens."""
        found = []
        for place, ahead in enumerate(forward):
            sizes = self._experts.get(place, PackedSizes())
            kept = sizes.kept(tokens) if tokens else 0
            found.append(Segment(ahead.peak + sizes.unpacked + kept, ahead.left + kept))
        return tuple(found)

    def _packed_sizes(self, structure: Any, lora: Lora) -> dict[int | None, PackedSizes]:
        """Return the sizes of packed parameters by the place of the traced layer; those outside of layers have None."""
        parameters, config = packed_parameters(structure), structure.config.get_text_config()
        layers: dict[int | None, list[PackedParameter]] = {}
        for parameter in parameters:
            layers.setdefault(self._layer_of(parameter.name), []).append(parameter)
        linear = tuple(
            name for name, module in structure.named_modules() if isinstance(module, torch.nn.Linear)
        )
        return {place: packed_sizes(held, linear, lora, config) for place, held in layers.items()}

    def _layer_of(self, name: str) -> int | None:
        """Return the place among the traced layers of the one that holds a parameter; None if it is outside of them."""
        if self._path is None or not name.startswith(f"{self._path}."):
            return None
        return int(name.removeprefix(f"{self._path}.").partition(".")[0])

    def _evaluation(self, way: Way) -> int:
        key = (way.weights, way.rows, way.length)
        if key not in self._evaluations:
            # It keeps nothing for a backward pass, so checkpointing changes nothing.
            model = self._model(way.weights, checkpointing=way.checkpointing)
            segments = model.evaluation(way.rows, way.length)
            segments = replace(segments, forward=self._with_unpacked(segments.forward))
            self._evaluations[key] = compose(segments, self._layers).forward
        return self._evaluations[key]

    def _model(self, weights: Weights, *, checkpointing: bool) -> AdaptedModel:
        key = (weights, checkpointing)
        if key not in self._models:
            training = self._run.training.model_copy(
                update={"weights": weights, "gradient_checkpointing": checkpointing}
            )
            run = self._run.model_copy(update={"training": training})
            self._models[key] = AdaptedModel(self._structure, self._path, run, self._tracked)
        return self._models[key]

    def _optimizer(self, optimizer: Optimizer) -> OptimizerSizes:
        if optimizer not in self._optimizers:
            model = self._model("Quantized", checkpointing=True)
            self._optimizers[optimizer] = model.optimizer(optimizer)
        return self._optimizers[optimizer]

    def _linear_trained(self) -> int:
        return self._total(self._model("Quantized", checkpointing=True).trained_parameters)

    def _with_packed(self, size: int) -> int:
        """Return a size that grows with the trained values, for those of packed parameters, too."""
        linear = self._linear_trained()
        return size if linear == 0 else -(-size * (linear + self._packed.trained) // linear)

    def _total(self, sizes: Sizes) -> int:
        return total(sizes.outside, sizes.layers, self._layers)
