"""Jobs, models and GPUs to size."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from finetune_operator.api.spec import FineTuneJobSpec
from finetune_operator.sizing.decision import Feasible, Infeasible
from finetune_operator.sizing.gpus.gpu import Gpu, Offer
from finetune_operator.sizing.gpus.products import find_product
from finetune_operator.sizing.memory.shape import ModelShape, model_shape
from finetune_operator.sizing.request import SizingRequest

CONFIGS = Path(__file__).parent / "configs"
RESOURCE = "nvidia.com/gpu"


def mistral() -> ModelShape:
    """The shape of Mistral-7B-Instruct-v0.3."""
    return model_shape(json.loads((CONFIGS / "mistral-7b-instruct-v0.3.json").read_text("utf-8")))


def make_spec(training: dict[str, Any] | None = None, **resources: Any) -> FineTuneJobSpec:
    """A job with defaults for everything that is not given."""
    claim = {"persistentVolumeClaim": {"claimName": "assets", "path": "here"}}
    return FineTuneJobSpec.parse(
        {
            "model": {"source": claim},
            "dataset": {"source": claim},
            "output": {"destination": {"persistentVolumeClaim": {"claimName": "assets"}}},
            "training": training or {},
            "resources": resources,
        }
    )


def product(name: str) -> Gpu:
    """A GPU of the product table."""
    gpu = find_product(name)
    assert gpu is not None, name
    return gpu


def sized(usable_bytes: int | None, name: str = "Sized") -> Gpu:
    """A GPU of any size without other known facts."""
    return Gpu(name, "Nvidia", usable_bytes)


def on_node(gpu: Gpu, node: str = "node", **others: Any) -> Offer:
    """One GPU of one node."""
    return Offer(gpu, RESOURCE, 1, node=node, **others)


def feasible(decision: Feasible | Infeasible) -> Feasible:
    """The decision, which must be that the job fits."""
    assert isinstance(decision, Feasible), decision.message
    return decision


def infeasible(decision: Feasible | Infeasible) -> Infeasible:
    """The decision, which must be that the job does not fit."""
    assert isinstance(decision, Infeasible), decision
    return decision


def make_request(
    training: dict[str, Any] | None = None, length: int | None = 2048, **others: Any
) -> SizingRequest:
    """Mistral-7B with rows of `length` tokens."""
    resources = others.pop("resources", {})
    return SizingRequest(make_spec(training, **resources), mistral(), length, **others)
