"""Estimates the GPU memory of a run, term by term."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from finetune_operator.sizing.memory.activations import batch_item, layer_memories, peak_items, waiting_item
from finetune_operator.sizing.memory.adapters import bucket_items, optimizer_item, trained_tensors
from finetune_operator.sizing.memory.calibration import NO_CALIBRATION
from finetune_operator.sizing.memory.device import device_items
from finetune_operator.sizing.memory.losses import loss_items, scoring_items
from finetune_operator.sizing.memory.sharing import REPLICA, gathered, own_weight_items
from finetune_operator.sizing.memory.terms import Estimate, MemoryItem, Phase, Term
from finetune_operator.sizing.memory.weights import (
    cast_items,
    dequantized_items,
    dora_preparation,
    weight_items,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from finetune_operator.sizing.gpus.gpu import Gpu
    from finetune_operator.sizing.memory.activations import LayerMemory
    from finetune_operator.sizing.memory.calibration import Calibration
    from finetune_operator.sizing.memory.shape import ModelShape
    from finetune_operator.sizing.memory.sharing import Gathered
    from finetune_operator.sizing.memory.stack import StackProfile
    from finetune_operator.sizing.memory.training_plan import TrainingPlan

_MARGIN = 1 << 28


def estimate(
    shape: ModelShape,
    plan: TrainingPlan,
    stack: StackProfile,
    calibration: Calibration = NO_CALIBRATION,
    gpu: Gpu | None = None,
) -> Estimate:
    """Estimate the memory of one run in bytes on one of its GPUs; without a `gpu`, the result holds for every GPU."""
    packed = stack
    if plan.weights == "Dequantized":
        # Layers then multiply with matrices in 16 bits.
        stack = replace(stack, quantization="None")
    dequantized = stack.quantization != packed.quantization
    moving = REPLICA
    if plan.parallelism == "FullyShard":
        loading = weights = own_weight_items(shape, packed, plan.ranks, dequantized=dequantized)
        moving = gathered(shape, packed, plan.ranks, dequantized=dequantized)
    else:
        loading = weights = weight_items(shape, stack)
        if dequantized:
            constants, matrix = dequantized_items(shape, packed)
            weights, loading = (*weights, constants), (*weights, constants, matrix)
    casts, original = cast_items(shape, stack)
    trained = trained_tensors(shape, plan, stack)
    adapter = MemoryItem("adapter", trained.bytes, f"{trained.parameters} parameters x {trained.width} B")
    gradients = MemoryItem("gradients", trained.bytes, "as large as the adapter")
    static = (*weights, *casts, adapter, optimizer_item(trained, stack.optimizer or plan.optimizer))
    buckets = bucket_items(trained, plan)
    stack = calibrated(stack, calibration)
    step = _Step(
        shape,
        plan,
        stack,
        layer_memories(shape, plan, stack),
        gradients,
        calibration.activation_factor,
        moving,
    )
    casting = (MemoryItem("16-bit original", original, "of the largest parameter that is cast"),)
    adapting = (
        adapter,
        # peft creates every adapter in float32 first.
        MemoryItem(
            "adapter in float32", trained.parameters * (4 - trained.width), "before its cast to 16 bits"
        ),
        MemoryItem("DoRA magnitudes", dora_preparation(shape, plan, stack), "of the largest matrix"),
    )
    terms = [
        *_during(Phase.LOAD, loading),
        *_during(Phase.PREPARE, (*weights, *casts, *_largest(casting, adapting))),
        *_during(Phase.LOSS, (*static, *buckets, *step.loss())),
        *_during(Phase.RECOMPUTE, (*static, *buckets, *step.backward())),
        *_during(Phase.OPTIMIZER, (*static, *(buckets or (gradients,)), batch_item(shape, plan, stack))),
        *_during(Phase.EVALUATION, (*static, *step.evaluation())),
    ]
    return completed(terms, stack, calibration, gpu)


def completed(
    terms: Sequence[Term], stack: StackProfile, calibration: Calibration, gpu: Gpu | None
) -> Estimate:
    """Return the estimate of the terms of all phases; those of the device are added. `stack` is `calibrated`."""
    phases: dict[Phase, int] = {}
    for term in terms:
        phases[term.phase] = phases.get(term.phase, 0) + term.bytes
    bottleneck = max(phases, key=lambda phase: phases[phase])
    peak = phases[bottleneck]
    on_device = device_items(peak, stack, gpu)
    all_terms = (*terms, *_during(Phase.DEVICE, on_device))
    phases[Phase.DEVICE] = sum(part.bytes for part in on_device)
    device = peak + phases[Phase.DEVICE]
    return Estimate(
        terms=all_terms,
        phases=phases,
        peak_bytes=peak,
        device_bytes=device,
        low_bytes=device + round(device * calibration.low_residual),
        high_bytes=device + round(device * calibration.high_residual) + _MARGIN,
        bottleneck=bottleneck,
        stack=f"{stack.name} {stack.version}",
        calibration=calibration.version,
    )


class _Step:
    """Memory of a step without weights, adapter and optimizer states."""

    def __init__(
        self,
        shape: ModelShape,
        plan: TrainingPlan,
        stack: StackProfile,
        layers: tuple[tuple[int, LayerMemory], ...],
        gradients: MemoryItem,
        factor: float,
        moving: Gathered,
    ) -> None:
        self._shape = shape
        self._plan = plan
        self._stack = stack
        self._layers = layers
        self._gradients = gradients
        self._factor = factor
        self._moving = moving
        self._batch = batch_item(shape, plan, stack)

    def loss(self) -> tuple[MemoryItem, ...]:
        """Return the items at the peak of the forward pass and the loss."""
        before = (self._gradients,) if self._plan.gradient_accumulation > 1 else ()
        others = self._kept(last=True)
        if self._plan.gradient_checkpointing:
            all_kept = others
        else:
            all_kept = MemoryItem(
                "activations of all layers",
                sum(count * one.all_saved for count, one in self._layers),
                f"{self._shape.layers} layers",
            )
        loss = loss_items(self._shape, self._plan, self._stack)
        running = (others, *peak_items(max((one.forward for _, one in self._layers), key=sum)))
        moving = self._moving
        return (
            *before,
            *self._largest_of(
                ((all_kept, *loss), moving.projecting),
                (running, moving.running),
                ((all_kept, _hidden(loss)), moving.at_head),
                ((), moving.beginning),
            ),
        )

    def backward(self) -> tuple[MemoryItem, ...]:
        """Return the items at the peak of the backward pass: in the last layer, or in the first with all gradients."""
        busiest = max(
            (one for _, one in self._layers), key=lambda one: sum(one.backward) + one.kernel_workspace
        )
        work = peak_items(busiest.backward)
        workspace = MemoryItem(
            "attention workspace", busiest.kernel_workspace, "inside the kernel", visible=False
        )
        # Of several ranks, the gradients are in the buckets by then.
        gradients = (self._gradients,) if self._plan.ranks == 1 else ()
        first = (*gradients, self._moving.first_backward, *self._scaled(self._kept(last=False)))
        last = (
            self._last_gradients(),
            self._moving.last_backward,
            *self._scaled(self._kept(last=True)),
        )
        return (*_largest(last, first), *self._scaled(self._batch, *work, workspace))

    def evaluation(self) -> tuple[MemoryItem, ...]:
        """Return the items at the peak of scoring a batch: in a layer, or at the logits."""
        running = peak_items(max((one.inference for _, one in self._layers), key=sum))
        hidden = self._stack.residual_width * self._shape.hidden * self._plan.tokens
        scoring = scoring_items(self._shape, self._plan, self._stack)
        layer = (MemoryItem("layer input", hidden, "of one layer"), *running)
        moving = self._moving
        return self._largest_of(
            (scoring, moving.projecting),
            (layer, moving.running),
            ((_hidden(scoring),), moving.at_head),
            ((), moving.answering),
        )

    def _largest_of(self, *ways: tuple[tuple[MemoryItem, ...], MemoryItem]) -> tuple[MemoryItem, ...]:
        """Return the batch with the largest of some moments: the activations and the gathered weights of each."""
        activations, weights = max(ways, key=lambda way: sum(part.bytes for part in way[0]) + way[1].bytes)
        return (*self._scaled(self._batch, *activations), weights)

    def _scaled(self, *parts: MemoryItem) -> tuple[MemoryItem, ...]:
        """Multiply activations by the calibration's factor."""
        if self._factor == 1:
            return parts
        return tuple(replace(part, bytes=round(part.bytes * self._factor)) for part in parts)

    def _kept(self, *, last: bool) -> MemoryItem:
        return waiting_item(self._layers, self._shape, self._plan, self._stack, last=last)

    def _last_gradients(self) -> MemoryItem:
        """Return the gradients while the last layer runs: of that layer, or of all if passes accumulate."""
        if self._plan.gradient_accumulation > 1:
            return self._gradients
        return replace(self._gradients, bytes=self._gradients.bytes // self._shape.layers)


def calibrated(stack: StackProfile, calibration: Calibration) -> StackProfile:
    """Return the profile with the constants of the calibration."""
    if calibration.fragmentation is not None:
        stack = replace(stack, fragmentation=calibration.fragmentation)
    if calibration.context_bytes is not None:
        stack = replace(stack, context_bytes=calibration.context_bytes)
    return stack


def _largest(one: tuple[MemoryItem, ...], other: tuple[MemoryItem, ...]) -> tuple[MemoryItem, ...]:
    return max((one, other), key=lambda parts: sum(part.bytes for part in parts))


def _hidden(items: tuple[MemoryItem, ...]) -> MemoryItem:
    return next(item for item in items if item.name == "hidden states")


def _during(phase: Phase, parts: Iterable[MemoryItem]) -> list[Term]:
    return [part.during(phase) for part in parts if part.bytes]
