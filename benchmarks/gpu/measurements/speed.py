"""Measurement 4: tokens per second of the trainer, of plain TRL, and of TRL with Liger kernels, on the same checkpoint."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from finetune_operator.sizing.memory.estimate import estimate
from finetune_operator.sizing.memory.shape import model_shape
from finetune_operator.sizing.memory.stack import DEFAULT_STACK
from finetune_operator.sizing.memory.training_plan import TrainingPlan
from finetune_trainer.contract.run_spec import RunSpec
from finetune_trainer.stages.train import memory
from finetune_trainer.stages.train.batching import batching_result
from finetune_trainer.stages.train.ladder import this_device
from finetune_trainer.workspace.layout import WorkspaceLayout

from benchmarks.gpu import peers, profiling, roofline, training
from benchmarks.gpu.context import Context
from benchmarks.gpu.older_torch import adapt
from benchmarks.gpu.shapes import Rows
from benchmarks.gpu.weights import Weights, quantized_weights
from benchmarks.gpu.workspaces import make_run, make_workspace, row_lengths

FLOPS_PER_PARAMETER = 4
"""Of a training step with frozen weights, for each token: two forward, and two for the gradient of the activations.

It is the convention of published figures. A repeated forward pass for gradient checkpointing does not count.
"""
_WARM = 1
_ROOM = 0.9


@dataclass(frozen=True)
class Choice:
    """What a case's name says: the trainer, its batching, its rows, and what else differs."""

    trainer: str
    batching: str
    rows: str
    options: tuple[str, ...] = ()

    @classmethod
    def of(cls, words: list[str]) -> Choice:
        """Read the words of a case's name behind the model's."""
        trainer, batching, rows, *options = words
        return cls(trainer, batching, rows, tuple(options))


@dataclass(frozen=True)
class Task:
    """A prepared workspace and its run."""

    model: str
    config: dict[str, Any]
    weights: Weights
    layout: WorkspaceLayout
    run: RunSpec
    rows: Rows
    steps: int
    notes: tuple[str, ...] = ()


def run(case: str, context: Context) -> dict[str, Any]:
    """Return the values of one case."""
    model, *words = case.split()
    adapt()
    memory.release()
    memory.reset_peaks()
    if words == ["roofline"]:
        return _roofline(model, context)
    if words == ["profile"]:
        return _profile(model, context)
    choice = Choice.of(words)
    task = prepare(model, choice, context)
    if choice.trainer == "ours":
        return _ours(task, choice, context)
    measured = peers.train(
        task.run,
        task.layout,
        steps=task.steps,
        warm=_WARM,
        packed=choice.batching == "packed",
        liger=choice.trainer == "liger",
    )
    return _common(task, measured.timing, context) | {
        "optimizer": measured.optimizer,
        "notes": [*task.notes, *measured.notes],
    }


def prepare(model: str, choice: Choice, context: Context) -> Task:
    """Make workspace and run spec. Peers get the same rows, adapter and checkpointing as the trainer."""
    config = context.size.configs[model]
    rows = context.size.rows[choice.rows]
    weights = quantized_weights(model, config, context.scratch, context.device)
    steps = _WARM + context.size.measured_steps
    layout = make_workspace(context.scratch / "speed", weights, row_lengths(rows, rows.per_step * steps))
    checkpointing = not fits_without_checkpointing(config, rows, context)
    members: dict[str, Any] = {"gradientCheckpointing": checkpointing}
    if choice.trainer == "ours":
        members |= {"packing": "Auto" if choice.batching == "packed" else "Never"}
        members |= rung_members(choice.options)
        members |= {"kernels": "Reference" if "reference" in choice.options else "Auto"}
    spec = make_run(layout, context.device, rows, steps, **members)
    return Task(model, config, weights, layout, spec, rows, steps)


def rung_members(options: tuple[str, ...]) -> dict[str, str]:
    """Return optimizer and weights of the run spec for what a case's name says."""
    return {
        "optimizer": "PagedAdamW8Bit" if "paged-8bit" in options else "AdamW",
        "weights": "Dequantized" if "dequantized" in options else "Quantized",
    }


def fits_without_checkpointing(config: dict[str, Any], rows: Rows, context: Context) -> bool:
    """Return whether a pass fits the device by the operator's estimate, with a tenth to spare.

    Packed weights count for all cases, so that they differ in nothing else.
    """
    plan = TrainingPlan(
        rows.length,
        micro_batch_size=rows.per_pass,
        gradient_accumulation=rows.per_step // rows.per_pass,
        gradient_checkpointing=False,
        optimizer="AdamW",
    )
    total = this_device(context.device).bytes
    return not total or estimate(model_shape(config), plan, DEFAULT_STACK).device_bytes <= _ROOM * total


def _ours(task: Task, choice: Choice, context: Context) -> dict[str, Any]:
    cudnn = "cudnn" in choice.options
    timer = training.StepTimer(context.device, _WARM)
    built = training.build(task.run, task.layout, (timer,))
    trainer, batching = built.trainer, built.batching
    timer.tokens = lambda: trainer.tokens
    with training.cudnn_attention(context.device, enabled=cudnn):
        trainer.train()
    result = batching_result(batching, trainer.state.log_history)
    notes = [*task.notes, *([batching.reason] if batching.reason else [])]
    return _common(task, timer.timing, context) | {
        "batching": batching.kind,
        "attention": trainer.attention.backend,
        "kernels": list(built.kernels.used),
        "kernelsReason": built.kernels.reason,
        "realTokens": result.real_tokens,
        "cudnn": cudnn,
        "dequantized": task.run.training.weights == "Dequantized",
        "optimizer": str(getattr(trainer.args.optim, "value", trainer.args.optim)),
        "notes": notes,
    }


def _common(task: Task, timing: training.Timing, context: Context) -> dict[str, Any]:
    rate = timing.tokens / timing.seconds
    found = memory.read()
    return {
        "model": task.model,
        "parameters": task.weights.parameters,
        "rows": {"length": task.rows.length, "perStep": task.rows.per_step, "perPass": task.rows.per_pass},
        "tokensPerSecond": rate,
        "share": share(rate, task.weights.parameters, context.matrix_flops),
        "tokens": timing.tokens,
        "seconds": timing.seconds,
        "steps": task.steps - _WARM,
        "loss": timing.loss,
        "peakBytes": None if found is None else found.allocated_peak,
        "gradientCheckpointing": task.run.training.gradient_checkpointing,
    }


def share(tokens_per_second: float, parameters: int, matrix_flops: float | None) -> float | None:
    """Return the share of the device's measured matrix rate that a training needs, counted as published figures do."""
    if not matrix_flops:
        return None
    return FLOPS_PER_PARAMETER * parameters * tokens_per_second / matrix_flops


def _roofline(model: str, context: Context) -> dict[str, Any]:
    config = context.size.configs[model]
    rows = context.size.rows["full"]
    weights = quantized_weights(model, config, context.scratch, context.device)
    found = roofline.measure(config, rows.length, rows.per_pass, context.device)
    return {
        "model": model,
        "parameters": weights.parameters,
        "layers": found.layers,
        "attentionSeconds": found.attention_seconds,
        "matrixSeconds": found.matrix_seconds,
        "tokensPerSecond": found.tokens_per_second,
        "share": share(found.tokens_per_second, weights.parameters, context.matrix_flops),
    }


def _profile(model: str, context: Context) -> dict[str, Any]:
    task = prepare(model, Choice("ours", "packed", "full"), context)
    task = replace(task, run=training.with_steps(task.run, _WARM + 2))
    watch = profiling.StepProfile(context.device, profiled=_WARM, counted=_WARM + 1)
    trainer = training.build(task.run, task.layout, (watch,)).trainer
    with training.cudnn_attention(context.device, enabled=False):
        trainer.train()
    return {"model": model, "torchThreads": torch.get_num_threads(), **watch.values()}
