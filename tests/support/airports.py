"""Runs of the trainer in this process, on the quickstart's model and data."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from finetune_trainer.contract.run_spec import RunSpec
from finetune_trainer.model.load import load_quantized
from finetune_trainer.quantization.rounding import Noise, round_weights
from finetune_trainer.stages.train.dataset import open_table
from finetune_trainer.workspace.layout import WorkspaceLayout
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from transformers import AutoModelForCausalLM

from tests.support.e2e import quickstart

if TYPE_CHECKING:
    from finetune_trainer.data.masking.example import Example

# The 4-bit weights are expanded once for each batch.
_BATCH = 8


def airports_run(
    root: Path, destination: Path, training: dict[str, Any], output: dict[str, Any] | None = None
) -> RunSpec:
    """Return the run spec of the quickstart in the workspace `root`; `training` and `output` replace members."""
    datasets = quickstart.VOLUME / "datasets"
    document = {
        "version": "1.0",
        "job": {"namespace": "team", "name": "airports", "uid": "u1"},
        "specHash": "sha256:" + "3" * 64,
        "attempt": 0,
        "device": "cpu",
        "model": {
            "source": {"kind": "Directory", "path": str(quickstart.BASE_MODEL)},
            "chatTemplateArguments": {},
        },
        "dataset": {
            "source": {"kind": "File", "path": str(datasets / "airports.train.jsonl")},
            "validation": {"source": {"kind": "File", "path": str(datasets / "airports.validation.jsonl")}},
            "reasoning": "Keep",
            "rejectedRows": {"maximumFraction": 0.01},
        },
        "training": {
            "maximumSteps": 8,
            "learningRate": 2e-4,
            "effectiveBatchSize": 16,
            "microBatchSize": 4,
            "maximumLength": 512,
            "lora": {
                "rank": 16,
                "alpha": 32,
                "dropout": 0.05,
                "targetModules": "AllLinear",
                "variant": "Standard",
            },
            "quantization": "NF4",
            "seed": 42,
            "schedule": {"type": "Cosine", "warmupRatio": 0.03},
            "gradientCheckpointing": False,
            "checkpoint": {"intervalSteps": 1000},
            **training,
        },
        "evaluation": {"maximumRows": 40, "generatedRows": 0},
        "output": {
            "artifacts": ["Adapter", "Merged"],
            "destination": {
                "kind": "Directory",
                "path": str(destination),
                "uri": "pvc://team/claim/airports",
            },
            **(output or {}),
        },
        "workspace": {"path": str(root)},
        "telemetry": {"port": 18081, "host": "127.0.0.1"},
        "limits": {"datasetBytes": 10_000_000, "downloadSeconds": 60, "allowPrivateAddresses": False},
    }
    return RunSpec.model_validate_json(json.dumps(document))


def load_trained(workspace: WorkspaceLayout) -> Any:
    """Load what was evaluated: the adapter on the 4-bit base, which computes in float32 on a CPU."""
    model = load_quantized(workspace.quantized_model, "cpu")
    return PeftModel.from_pretrained(model, workspace.adapter).eval()


def load_on_original(workspace: WorkspaceLayout) -> Any:
    """Load the adapter on the original weights, in float32."""
    model = AutoModelForCausalLM.from_pretrained(quickstart.BASE_MODEL, dtype=torch.float32)
    return PeftModel.from_pretrained(model, workspace.adapter).eval()


def rounding_noise(workspace: WorkspaceLayout, trained: Scores, examples: list[Example]) -> float:
    """Return what stochastic rounding alone does to the loss of the merge onto the original weights, in nats per token.

    It is the root of the mean square over three other seeds. A loss moves in proportion to the error of the weights,
    and a divergence with its square, so a divergence says nothing about it.
    """
    differences = []
    for seed in range(1001, 1004):
        model = load_on_original(workspace)
        layers: dict[str, Any] = {
            name: layer for name, layer in model.named_modules() if isinstance(layer, LoraLayer)
        }
        for name, layer in layers.items():
            with torch.no_grad():
                exact = layer.base_layer.weight + layer.get_delta_weight("default")
                bits = np.empty(exact.numel(), np.uint16)
                round_weights(exact.reshape(-1).numpy(), "BF16", bits, Noise.of(seed, name))
                rounded = torch.from_numpy(bits).view(torch.bfloat16).reshape(exact.shape)
                layer.base_layer.weight.copy_(rounded)
        with model.disable_adapter():
            differences.append(score(model, examples).loss - trained.loss)
    return math.sqrt(sum(difference**2 for difference in differences) / len(differences))


def load_folder(folder: Path) -> Any:
    """Load a plain model in float32."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def held_out_examples(workspace: WorkspaceLayout, count: int) -> list[Example]:
    """Return the first examples that the run held out."""
    return open_table(workspace.validation_table).first(count)


@dataclass(frozen=True)
class Scores:
    """A model's view of supervised tokens: log-probabilities (nats) of the whole vocabulary, and of the tokens themselves."""

    distributions: torch.Tensor
    tokens: torch.Tensor

    @property
    def loss(self) -> float:
        """Mean negative log-likelihood in nats per token."""
        return -float(self.tokens.double().mean())

    def divergence_to(self, other: Scores) -> float:
        """KL(self || other), the mean over the tokens in nats."""
        own, others = self.distributions, other.distributions
        # In parts, because each is as large as the vocabulary.
        sums = [
            (mine.double().exp() * (mine.double() - theirs.double())).sum()
            for mine, theirs in zip(own.split(64), others.split(64), strict=True)
        ]
        return float(torch.stack(sums).sum()) / len(own)


@torch.inference_mode()
def score(model: Any, examples: list[Example]) -> Scores:
    """Score the supervised tokens of all examples by plain forward passes."""
    rows: list[torch.Tensor] = []
    chosen: list[torch.Tensor] = []
    for first in range(0, len(examples), _BATCH):
        batch = examples[first : first + _BATCH]
        width = max(len(example.input_ids) for example in batch)
        # Padding on the right changes nothing before it, because attention is causal.
        ids = torch.tensor(
            [[*example.input_ids, *[0] * (width - len(example.input_ids))] for example in batch]
        )
        states = model(input_ids=ids, use_cache=False).logits
        for example, logits in zip(batch, states, strict=True):
            places = torch.tensor(example.supervised)
            found = torch.log_softmax(logits[places - 1].float(), dim=-1)
            targets = torch.tensor([example.labels[place] for place in example.supervised])
            rows.append(found)
            chosen.append(found.gather(1, targets[:, None])[:, 0])
    return Scores(torch.cat(rows), torch.cat(chosen))
