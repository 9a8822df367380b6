"""The memory profile of a model: its modules by kind, and the peak of each phase for each way to run a step."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch._subclasses.fake_tensor import FakeTensorMode

from finetune_trainer.model.packed_parameters import packed_parameters
from finetune_trainer.trace.allocations import Allocations
from finetune_trainer.trace.census import take_census
from finetune_trainer.trace.cuda_paths import cuda_paths
from finetune_trainer.trace.fake_model import (
    adaptable_modules,
    build_config,
    plain_structure,
    quantized_structure,
)
from finetune_trainer.trace.layers import find_layers, keep_layers, sampled_layers, stand_ins
from finetune_trainer.trace.packed import packed_sizes
from finetune_trainer.trace.segments import compose, total
from finetune_trainer.trace.step import AdaptedModel, OptimizerSizes, Sizes
from finetune_trainer.trace.ways import Way

if TYPE_CHECKING:
    from finetune_trainer.contract.run_spec import Optimizer, RunSpec, Weights


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
        whole_model = plain_structure(build_config(document))
        parameters = packed_parameters(whole_model)
        whole_model = quantized_structure(whole_model)
        self._packed = packed_sizes(
            parameters, adaptable_modules(whole_model), lora, whole_model.config.get_text_config()
        )
        self.census = take_census(whole_model, lora.target_modules, parameters, self._packed)
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
        step = compose(segments, self._layers)
        held = weights + batch + (gradients if way.accumulates else 0) + packed.unpacked
        tokens = way.rows * way.length
        kept = packed.saved_layer if way.checkpointing else packed.saved_deep
        return Peaks(
            load=weights + model.load_transient,
            loss=held + step.forward + tokens * (0 if way.checkpointing else kept),
            # Gradients of all experts may be there before the last layer's pass has ended.
            recompute=held + step.backward + tokens * kept + (0 if way.accumulates else packed.trained_bytes),
            optimizer=weights + batch + gradients + self._with_packed(self._optimizer(optimizer).transient),
            evaluation=weights + batch + packed.unpacked + self._evaluation(way),
        )

    def _evaluation(self, way: Way) -> int:
        key = (way.weights, way.rows, way.length)
        if key not in self._evaluations:
            # It keeps nothing for a backward pass, so checkpointing changes nothing.
            model = self._model(way.weights, checkpointing=way.checkpointing)
            segments = model.evaluation(way.rows, way.length)
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
