"""Fixtures of the trainer's tests: a tiny model, run specs for it, and the real 135M model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from finetune_trainer.contract.run_spec import RunSpec

from tests.support.repository import ROOT
from tests.support.tiny_models import conversation_rows, write_rows, write_tiny_model

if TYPE_CHECKING:
    from tests.support.chat_templates.real_tokenizers import RealTokenizers


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a tiny Llama in bf16."""
    return write_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> RealTokenizers:
    """Return tokenizers with real vocabularies, each built only once because the large ones take seconds."""
    # The packages with the vocabularies take seconds to import.
    from tests.support.chat_templates.real_tokenizers import RealTokenizers  # noqa: PLC0415 -- see above

    return RealTokenizers(tmp_path_factory.mktemp("tokenizers"))


@pytest.fixture
def run_document(tmp_path: Path, tiny_model: Path) -> dict[str, Any]:
    """Return a run spec for the tiny model and 20 rows, with all other paths in the test's folder."""
    dataset = write_rows(tmp_path / "rows.jsonl", conversation_rows(20))
    return {
        "version": "1.0",
        "job": {"namespace": "team", "name": "tiny", "uid": "11111111-2222-3333-4444-555555555555"},
        "specHash": "sha256:" + "0" * 64,
        "attempt": 0,
        "device": "cpu",
        "model": {"source": {"kind": "Directory", "path": str(tiny_model)}, "chatTemplateArguments": {}},
        "dataset": {
            "source": {"kind": "File", "path": str(dataset)},
            "validation": {"fraction": 0.1},
            "reasoning": "Keep",
            "rejectedRows": {"maximumFraction": 0.01},
        },
        "training": {
            "maximumSteps": 2,
            "learningRate": 0.001,
            "effectiveBatchSize": 4,
            "microBatchSize": 2,
            "maximumLength": 256,
            "lora": {
                "rank": 4,
                "alpha": 8,
                "dropout": 0,
                "targetModules": "AllLinear",
                "variant": "Standard",
            },
            "quantization": "NF4",
            "seed": 42,
            "schedule": {"type": "Cosine", "warmupRatio": 0.0},
            "gradientCheckpointing": False,
            "checkpoint": {"intervalSteps": 100},
        },
        "evaluation": {"maximumRows": 8},
        "output": {
            "artifacts": ["Adapter", "Merged"],
            "destination": {
                "kind": "Directory",
                "path": str(tmp_path / "out"),
                "uri": "pvc://team/claim/tiny",
            },
        },
        "workspace": {"path": str(tmp_path / "workspace")},
        "telemetry": {"port": 18080, "host": "127.0.0.1"},
        "limits": {"datasetBytes": 10_000_000, "downloadSeconds": 60, "allowPrivateAddresses": False},
    }


@pytest.fixture
def make_run(run_document: dict[str, Any]) -> Callable[..., RunSpec]:
    """Return a function that makes run specs. Its keyword arguments replace top-level members of the document."""

    def make(**changes: Any) -> RunSpec:
        return RunSpec.model_validate({**run_document, **changes})

    return make


@pytest.fixture(scope="session")
def real_model() -> Path:
    """Return the folder of SmolLM2-135M-Instruct, which `make assets` unpacks from its package."""
    folder = ROOT / ".finetune" / "volumes" / "quickstart" / "models" / "SmolLM2-135M-Instruct"
    if not (folder / "model.safetensors").is_file():
        pytest.fail(f"the real model must be at {folder}: run scripts/quickstart_assets.py first")
    return folder
