"""Measurement 2: a checkpoint of PREPARE, loaded by TRAIN: the same values and the same loss as on a CPU."""

from __future__ import annotations

import shutil
import time
from typing import Any

import bitsandbytes.functional
import torch
from finetune_trainer.evaluation.scoring import row_losses
from finetune_trainer.model.layout import read_base_layout
from finetune_trainer.model.load import check_quantized, load_quantized, quantized_modules
from finetune_trainer.quantization.quantize import quantize_model
from finetune_trainer.sources.model import DirectoryModel
from finetune_trainer.telemetry.reporter import NullReporter
from finetune_trainer.workspace.layout import WorkspaceLayout

from benchmarks.gpu.context import Context
from benchmarks.gpu.training import synchronize
from benchmarks.gpu.weights import write_original
from benchmarks.gpu.workspaces import random_examples

bnb: Any = bitsandbytes.functional
_ROWS, _LENGTH = 4, 64
_BF16_STEP = 2**-8
"""The largest relative error of one rounding to bf16. Errors of a mean over many tokens are smaller than one rounding."""


def run(case: str, context: Context) -> dict[str, Any]:
    """Quantize on the CPU, load on the device and on the CPU, and compare."""
    assert case == "checkpoint"
    name = context.size.loading
    root = context.scratch / "loading"
    original = root / "original"
    started = time.perf_counter()
    write_original(context.size.configs[name], original, context.device)
    made = time.perf_counter()
    layout = WorkspaceLayout(root / "workspace")
    layout.root.mkdir()
    written = quantize_model(DirectoryModel(original), layout, NullReporter())
    quantized = time.perf_counter()
    model = load_quantized(layout.quantized_model, context.device)
    synchronize(context.device)
    loaded = time.perf_counter()
    check_quantized(model, read_base_layout(layout))
    reference = load_quantized(layout.quantized_model, "cpu")
    differing, modules = compare_weights(model, reference)
    vocabulary = reference.get_input_embeddings().weight.shape[0]
    examples = random_examples([_LENGTH] * _ROWS, vocabulary)
    losses = [_loss(each, examples) for each in (model, reference)]
    shutil.rmtree(root)
    return {
        "model": name,
        "originalSeconds": made - started,
        "quantizeSeconds": quantized - made,
        "checkpointBytes": written.bytes,
        "loadSeconds": loaded - quantized,
        "modules": modules,
        "differingValues": differing,
        "loss": losses[0],
        "lossOnCpu": losses[1],
        "tolerance": losses[1] * _BF16_STEP,
        "equal": differing == 0 and abs(losses[0] - losses[1]) <= losses[1] * _BF16_STEP,
    }


def compare_weights(model: Any, reference: Any) -> tuple[int, int]:
    """Return how many dequantized values differ in their bf16 bits, and the number of 4-bit modules."""
    differing = 0
    others = quantized_modules(reference)
    found = quantized_modules(model)
    for name, module in found.items():
        one, other = (_bits(each) for each in (module, others[name]))
        differing += int((one != other).sum())
    return differing, len(found)


def _bits(module: Any) -> torch.Tensor:
    weight = module.weight
    # On a CPU the values are float32, which holds each bf16 value.
    values: torch.Tensor = bnb.dequantize_4bit(weight.data, weight.quant_state)
    return values.to(torch.bfloat16).cpu().view(torch.int16)


def _loss(model: Any, examples: Any) -> float:
    """Return the nats per learned token."""
    model.eval()
    losses = row_losses(model, examples, _ROWS * _LENGTH, lambda _done, _total: None)
    return sum(loss.nats for loss in losses) / sum(loss.tokens for loss in losses)
