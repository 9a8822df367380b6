"""Runs the trainer's actual step on fake tensors, to find its GPU allocations on a CPU without weights.

The trainer's functions (`finetune_trainer.model.load`, `.head`, `.scoring`, `.training`) create and call the model,
the adapter, the loss, the optimizer and the evaluation. So a change of memory there changes the peaks here. The
evaluation is that of the tuned model: the optimizer still exists and the adapter is active. The run has two optimizer
steps, because the optimizer's states exist only after the first, and passes for the second one.

The peaks include every tensor that torch allocates, rounded to the allocator's 512 bytes. They include the dequantized
weight of a backward pass, which is a tensor. For a forward pass of more than 1,536 tokens, bitsandbytes' rule adds it.
The peaks exclude `LEFT_OUT`. States of the paged optimizer count as device memory, where they are while in use.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from finetune_operator.sizing.memory.training_plan import TrainingPlan
from finetune_trainer.contract.run_spec import RunSpec
from finetune_trainer.data.masking.example import Example
from finetune_trainer.evaluation.scoring import supervised_log_probabilities
from finetune_trainer.model.attention import attention_facts
from finetune_trainer.model.attention_policy import choose_attention
from finetune_trainer.model.dequantized import dequantize_weights
from finetune_trainer.model.load import cast_model, compute_dtype, quantized_modules
from finetune_trainer.model.packed_attention import PackedRows, using_attention
from finetune_trainer.model.packed_parameters import PackedParameter, packed_parameters
from finetune_trainer.stages.train.adapter import add_adapter
from finetune_trainer.stages.train.loss import negative_log_likelihood
from finetune_trainer.stages.train.passes import Pass
from finetune_trainer.stages.train.settings import sft_config
from finetune_trainer.trace.allocations import Allocations
from finetune_trainer.trace.cuda_paths import cuda_paths
from finetune_trainer.trace.fake_model import give_fake_tensors, plain_structure, quantized_structure
from finetune_trainer.trace.routing import EXPERTS
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from transformers import Trainer

from tests.support.memory_oracle.packed_experts import give_packed_weights
from tests.support.memory_oracle.shallow import build_config
from tests.support.workspaces import run_spec

SOME_EXPERTS = 1024
"""Matrices of experts that a run with checkpointing uses all."""
PHASES = ("Load", "Loss", "Recompute", "Optimizer", "Evaluation")
LEFT_OUT = (
    "FlashBackwardWorkspace",
    "CublasWorkspace",
    "CudaContext",
    "Fragmentation",
    "LoadTransient",
)


@dataclass(frozen=True)
class FakePeaks:
    """Peak of each phase in bytes, the largest peak, and the memory that a fake run does not count."""

    phases: dict[str, int]
    peak_bytes: int
    left_out: tuple[str, ...] = LEFT_OUT


def run_fake(
    config: dict[str, Any], plan: TrainingPlan, layers: int | None = None, *, packed: bool = False
) -> FakePeaks:
    """Run two steps of `plan` on a model of this config.json, with `layers` layers instead of the config's.

    The rows of a pass are padded, or `packed`.
    """
    tracked = Allocations()
    model = quantized_structure(plain_structure(build_config(config, layers)))
    experts = packed_parameters(model)
    # Each expert keeps something. Beside the size of a large model that is nothing, unless all layers keep it at once.
    few = plan.gradient_checkpointing and sum(one.experts for one in experts) > SOME_EXPERTS
    with FakeTensorMode(allow_non_fake_inputs=True), cuda_paths(EXPERTS if few else None), tracked:
        _run(model, plan, tracked, experts, packed=packed)
    phases = {phase: tracked.peaks[phase] for phase in PHASES}
    return FakePeaks(phases, max(phases.values()))


def extrapolate(
    config: dict[str, Any], plan: TrainingPlan, layers: int | None = None, *, packed: bool = False
) -> FakePeaks:
    """Return peaks of a model of `layers` layers (default: the config's), from runs with two and four.

    All layers allocate the same amount, so each phase's peak is linear in their number.
    """
    few, more = (run_fake(config, plan, count, packed=packed) for count in (2, 4))
    count = layers if layers is not None else build_config(config, None).num_hidden_layers
    phases = {
        phase: few.phases[phase] + (more.phases[phase] - few.phases[phase]) * (count - 2) // 2
        for phase in PHASES
    }
    return FakePeaks(phases, max(phases.values()))


def plan_spec(plan: TrainingPlan) -> RunSpec:
    """Return a run spec of TRAIN with the values of `plan`."""
    return run_spec(
        Path("/workspace"),
        Path("/output"),
        device="cuda",
        effectiveBatchSize=plan.effective_batch_size,
        microBatchSize=plan.micro_batch_size,
        maximumLength=max(16, plan.sequence_length),
        gradientCheckpointing=plan.gradient_checkpointing,
        optimizer=plan.optimizer,
        weights=plan.weights,
        lora={
            "rank": plan.rank,
            "alpha": plan.rank,
            "dropout": 0.05 if plan.dropout else 0,
            "targetModules": plan.target_modules,
            "variant": plan.variant,
        },
    )


def _run(
    model: Any,
    plan: TrainingPlan,
    tracked: Allocations,
    experts: Sequence[PackedParameter],
    *,
    packed: bool,
) -> None:
    run = plan_spec(plan)
    tracked.enter("Load")
    give_packed_weights(model, experts)
    give_fake_tensors(model)
    dtype = compute_dtype(run.device)
    cast_model(model, dtype)
    names = [*quantized_modules(model), *(part.module for one in experts for part in one.parts)]
    if plan.weights == "Dequantized":
        dequantize_weights(model)
    model = add_adapter(model, run.training.lora, names)
    settings = sft_config(run, Path("/output"), 2)
    if settings.gradient_checkpointing:
        # As in TRL's and transformers' trainers, with the settings of our trainer.
        model.enable_input_require_grads()
        model.gradient_checkpointing_enable(settings.gradient_checkpointing_kwargs)
    optimizer_class, arguments = Trainer.get_optimizer_cls_and_kwargs(settings, model)
    with unset_fake_temporarily():
        # bitsandbytes computes its code tables, which reads values.
        optimizer = optimizer_class([p for p in model.parameters() if p.requires_grad], **arguments)
    one = every_place(plan, packed=packed)
    # Padded rows keep the attention with which the model was built.
    attention = model.config._attn_implementation
    if packed:
        facts = attention_facts(model.config, "cuda", packed=True, capability=(8, 0))
        attention = choose_attention(facts).implementation
    model.train()
    tracked.enter("Optimizer")
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.empty_like(parameter)
    # States exist after the first step, whose gradients need no pass.
    optimize(model, optimizer, settings.max_grad_norm)
    for _ in range(min(2, plan.gradient_accumulation)):
        with using_attention(model, attention):
            tracked.enter("Loss")
            loss = negative_log_likelihood(model, one) / plan.tokens
            tracked.enter("Recompute")
            loss.backward()
            del loss
    tracked.enter("Optimizer")
    optimize(model, optimizer, settings.max_grad_norm)
    evaluate(model, plan, tracked)


def optimize(model: Any, optimizer: Any, norm: float) -> None:
    """Run an optimizer step, and forget its gradients."""
    torch.nn.utils.clip_grad_norm_(model.parameters(), norm)
    optimizer.step()
    model.zero_grad()


def evaluate(model: Any, plan: TrainingPlan, tracked: Allocations) -> None:
    """Score the rows of a pass of the tuned model, as phase Evaluation."""
    tracked.enter("Evaluation")
    model.eval()
    ids = list(range(plan.sequence_length))
    supervised_log_probabilities(model, [Example(ids, ids, row) for row in range(plan.micro_batch_size)])


def every_place(plan: TrainingPlan, *, packed: bool) -> Pass:
    """Return a pass of the longest rows that supervises every token, which is the maximum of a batch."""
    rows, length = plan.micro_batch_size, plan.sequence_length
    count = rows * (length - 1)
    shape = (1, plan.tokens) if packed else (rows, length)
    ids, places, targets = (torch.zeros(size, dtype=torch.long) for size in (shape, (count,), (count,)))
    if not packed:
        return Pass(ids, places, targets, plan.tokens)
    position_ids = torch.zeros(shape, dtype=torch.long)
    return Pass(ids, places, targets, plan.tokens, PackedRows.of([length] * rows), position_ids)
