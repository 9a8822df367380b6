"""A job to size, with everything that decides its memory, and the ladder of its plans."""

from __future__ import annotations

from dataclasses import dataclass, replace

from finetune_operator.api.plan import DEFAULT_WEIGHTS, ONE_GPU, Device, Layout
from finetune_operator.api.pod_merge import NO_DEFAULTS, NodeRules, node_rules
from finetune_operator.api.spec import FineTuneJobSpec
from finetune_operator.api.stages import Stage
from finetune_operator.contract.memory_trace import MemoryTrace
from finetune_operator.sizing.gpus.gpu import Gpu
from finetune_operator.sizing.ladder import (
    ABILITIES,
    CPU_ABILITIES,
    OLDER_ABILITIES,
    Abilities,
    Estimator,
    Rung,
    rungs,
)
from finetune_operator.sizing.memory.calibration import NO_CALIBRATION, Calibration
from finetune_operator.sizing.memory.estimate import estimate
from finetune_operator.sizing.memory.shape import ModelShape
from finetune_operator.sizing.memory.stack import DEFAULT_STACK, StackProfile
from finetune_operator.sizing.memory.terms import Estimate, NotTracedError
from finetune_operator.sizing.memory.traced import traced_estimate
from finetune_operator.sizing.memory.training_plan import TrainingPlan

SHORTEST_LENGTH = 16
"""Tokens: the minimum of `training.maximumLength`. A job whose rows of this length do not fit never fits, whatever its
data. So it is rejected before anything is downloaded."""


@dataclass(frozen=True)
class SizingRequest:
    """A job to size.

    `sequence_length` is the padded length of the longest row in tokens, None before the data is known.
    `length_reason` says where it comes from. `shape` is None for an unknown family, whose `trace` must then be known. A
    trace comes before the closed form, but for shared weights, of which it gives a bound only. `device` is the device of
    TRAIN. A job on a CPU is still sized for the GPU resource in its spec. `rules` are what its pod asks of the node; None for
    the rules of the spec alone. `trainer` has what the trainer image can do on a GPU. `layout` has the GPUs that share each
    step; the memory is that of one of them.
    """

    spec: FineTuneJobSpec
    shape: ModelShape | None
    sequence_length: int | None = None
    stack: StackProfile = DEFAULT_STACK
    calibration: Calibration = NO_CALIBRATION
    device: Device = "cuda"
    length_reason: str = "the longest row of the data in tokens"
    rules: NodeRules | None = None
    trainer: Abilities = ABILITIES
    trace: MemoryTrace | None = None
    layout: Layout = ONE_GPU

    @property
    def abilities(self) -> Abilities:
        """What the ladder may choose: all that the trainer can do, unless the device or the stack decides."""
        if self.device == "cpu":
            return CPU_ABILITIES
        able = self.trainer
        stack = self.stack
        if self.layout.parallelism == "FullyShard":
            # GPUs exchange the weights of a layer twice in a pass, and packed ones have a quarter of the bytes.
            able = replace(able, weights=(DEFAULT_WEIGHTS,))
        if stack.cast_to_float32 or stack.quantized_head or not stack.quantization.startswith("NF4"):
            able = replace(able, weights=(DEFAULT_WEIGHTS,))
        fixed = stack.optimizer
        if fixed is None:
            return able
        named = tuple(each for each in able.optimizers if each == fixed)
        if named:
            return replace(able, optimizers=named, reason="trainer.stackProfile names it")
        # A run spec cannot ask for another one, so the image must take it by itself.
        return replace(able, optimizers=OLDER_ABILITIES.optimizers, reason="")

    @property
    def node_rules(self) -> NodeRules:
        """What the pod of TRAIN asks of its node."""
        return node_rules(NO_DEFAULTS, self.spec, Stage.TRAIN) if self.rules is None else self.rules

    @property
    def length(self) -> int:
        """Tokens of a row in the estimate."""
        return SHORTEST_LENGTH if self.sequence_length is None else self.sequence_length

    def estimator(self, gpu: Gpu | None) -> Estimator:
        """Return the function that estimates a plan of this job on `gpu`, or on any GPU if it is None."""

        def estimated(plan: TrainingPlan) -> Estimate:
            bounded = plan.parallelism == "FullyShard" and self.shape is not None
            if self.trace is not None and not bounded:
                return traced_estimate(self.trace, plan, self.stack, self.calibration, gpu)
            if self.shape is None:
                raise NotTracedError("a model of an unknown family must have a trace, found none")
            return estimate(self.shape, plan, self.stack, self.calibration, gpu)

        return estimated

    def ladder(self, gpu: Gpu | None) -> tuple[Rung, ...]:
        """Return every way to run the job with its estimate on `gpu`, or on any GPU if it is None."""
        return self._rungs(gpu, self.abilities)

    def frugal(self, gpu: Gpu | None) -> Rung:
        """Return the last rung of `ladder`, without the others."""
        return self._rungs(gpu, self.abilities.most_frugal)[-1]

    def _rungs(self, gpu: Gpu | None, abilities: Abilities) -> tuple[Rung, ...]:
        spec = self.spec
        return rungs(
            spec.training,
            self.length,
            self.estimator(gpu),
            spec.resources.right_size,
            abilities,
            self.layout,
        )
