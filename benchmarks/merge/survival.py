"""What each rounding rule leaves of an adapter, on the quickstart's real model and data."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from bitsandbytes.functional import dequantize_4bit
from finetune_trainer.model.load import load_quantized, quantized_modules
from finetune_trainer.stages.prepare.stage import prepare
from finetune_trainer.stages.train.stage import train
from finetune_trainer.telemetry.reporter import NullReporter
from finetune_trainer.workspace.layout import WorkspaceLayout
from safetensors.torch import load_file

from benchmarks.merge.rules import Rule, Survival, in_bf16, nearest, stochastic, twice
from tests.support.airports import airports_run, held_out_examples, load_folder, score
from tests.support.e2e import quickstart

RATES = (2e-5, 2e-4, 1e-3)
STEPS = 8
# Label with the stack that rounds like this, read from its source in 2026; then the rule.
TRAINED: tuple[tuple[str, Rule], ...] = (
    ("once, to nearest (MERGE)", nearest),
    ("once, stochastic", stochastic),
    ("bf16, add, round again (axolotl)", twice),
)
ORIGINAL: tuple[tuple[str, Rule], ...] = (
    ("once, stochastic (MERGE)", stochastic),
    ("once, to nearest (unsloth)", nearest),
    ("add in bf16 (peft)", in_bf16),
)


def measure(root: Path, rows: int) -> Iterator[dict[str, Any]]:
    """Train once for each learning rate; yield the figures of each rule, for both bases."""
    prepared = root / "prepared"
    prepare(airports_run(prepared, root / "output", {}), NullReporter())
    for rate in RATES:
        workspace = root / f"trained-{rate}"
        shutil.copytree(prepared, workspace)
        settings = {"learningRate": rate, "maximumSteps": STEPS}
        train(airports_run(workspace, root / "output", settings), NullReporter())
        yield from _rules(WorkspaceLayout(workspace), rate, rows)
        shutil.rmtree(workspace)


def _rules(workspace: WorkspaceLayout, rate: float, rows: int) -> Iterator[dict[str, Any]]:
    updates = _updates(workspace.adapter)
    examples = held_out_examples(workspace, rows)
    bases = {
        "TrainedWeights": (_dequantized(workspace.quantized_model), TRAINED),
        "OriginalWeights": (_originals(quickstart.BASE_MODEL, updates), ORIGINAL),
    }
    model = load_folder(quickstart.BASE_MODEL)
    weights = dict(model.named_parameters())
    for onto, (base, rules) in bases.items():
        _fill(weights, {name: base[name] for name in updates})
        untrained = score(model, examples)
        _fill(weights, {name: base[name] + update for name, update in updates.items()})
        trained = score(model, examples)
        for label, rule in rules:
            survival = Survival()
            for number, (name, update) in enumerate(updates.items()):
                merged = rule(base[name], update, number).float()
                survival.add(base[name], update, merged)
                _fill(weights, {name: merged})
            merged_scores = score(model, examples)
            yield {
                "learningRate": rate,
                "onto": onto,
                "rule": label,
                "projection": survival.projection,
                "relativeError": survival.relative_error,
                "divergence": trained.divergence_to(merged_scores),
                "effect": trained.divergence_to(untrained),
                "baseLoss": untrained.loss,
                "trainedLoss": trained.loss,
                "mergedLoss": merged_scores.loss,
                "tokens": len(trained.tokens),
            }


def _updates(adapter: Path) -> dict[str, torch.Tensor]:
    """Return the adapter's update of each weight, in float32, by the name of the weight."""
    tensors = load_file(adapter / "adapter_model.safetensors")
    config = airports_run(Path(), Path(), {}).training.lora
    scale = config.alpha / config.rank
    return {
        name.removeprefix("base_model.model.").removesuffix(".lora_A.weight") + ".weight": scale
        * (tensors[name.replace("lora_A", "lora_B")].float() @ tensor.float())
        for name, tensor in tensors.items()
        if ".lora_A." in name
    }


def _dequantized(folder: Path) -> dict[str, torch.Tensor]:
    """Return the trained base's linear weights, in float32 to the end."""
    found = {}
    for name, module in quantized_modules(load_quantized(folder, "cpu")).items():
        state = module.weight.quant_state
        state.dtype = torch.float32
        found[f"{name}.weight"] = dequantize_4bit(module.weight.data, state)
    return found


def _originals(folder: Path, names: Any) -> dict[str, torch.Tensor]:
    return {
        name: tensor.float()
        for name, tensor in load_file(folder / "model.safetensors").items()
        if name in names
    }


@torch.no_grad()
def _fill(weights: dict[str, Any], values: dict[str, torch.Tensor]) -> None:
    for name, value in values.items():
        weights[name].copy_(value)
