"""Files of the quickstart, and checks of its merged model."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.support.repository import ROOT

VOLUME = ROOT / ".finetune" / "volumes" / "quickstart"
JOB = ROOT / "examples" / "quickstart.yaml"
BASE_MODEL = VOLUME / "models" / "SmolLM2-135M-Instruct"
HELD_OUT = VOLUME / "datasets" / "airports.test.jsonl"
ROWS = 32
"""Held-out rows for a merged model, which must answer at least half of them exactly."""


def assert_complete_and_not_quantized(merged: Path) -> None:
    """Assert that the artifact has the base's config, tokenizer files, tensor names, types and shapes.

    The base has its chat template in two files, the artifact only in chat_template.jinja.
    """
    config = json.loads((merged / "config.json").read_text("utf-8"))
    assert "quantization_config" not in config
    assert config == json.loads((BASE_MODEL / "config.json").read_text("utf-8"))
    found = _safetensors_header(merged / "model.safetensors")
    base = _safetensors_header(BASE_MODEL / "model.safetensors")
    assert {k: (v["dtype"], v["shape"]) for k, v in found.items()} == {
        k: (v["dtype"], v["shape"]) for k, v in base.items()
    }
    assert not [key for key in found if "absmax" in key or "quant_state" in key]
    for name in ("tokenizer.json", "chat_template.jinja", "generation_config.json"):
        assert (merged / name).read_bytes() == (BASE_MODEL / name).read_bytes()
    tokenizer = json.loads((BASE_MODEL / "tokenizer_config.json").read_text("utf-8"))
    tokenizer.pop("chat_template", None)
    assert json.loads((merged / "tokenizer_config.json").read_text("utf-8")) == tokenizer


def _safetensors_header(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header: dict[str, Any] = json.loads(file.read(length))
    header.pop("__metadata__", None)
    return header


def exact_answers(model: Path, rows: int) -> int:
    """Count held-out rows that plain transformers answers exactly, in a process without bitsandbytes."""
    command = [sys.executable, str(ROOT / "scripts" / "exact_answers.py"), str(model), str(HELD_OUT)]
    answer = subprocess.run(
        [*command, "--rows", str(rows)], check=True, capture_output=True, text=True, timeout=900
    )
    return int(json.loads(answer.stdout.splitlines()[-1])["exact"])


def assert_merged_equals_trained(workspace: Path, merged: Path) -> None:
    """Assert KL(trained || merged) of at most 0.01 per token, and a loss within max(1 %, 0.005 nats) per token."""
    command = [
        sys.executable, str(ROOT / "scripts" / "compare_models.py"), "--rows", "16",
        str(workspace), str(merged), str(HELD_OUT),
    ]  # fmt: skip
    answer = subprocess.run(command, check=True, capture_output=True, text=True, timeout=900)
    found = json.loads(answer.stdout.splitlines()[-1])
    assert found["klDivergence"] <= 0.01
    assert abs(found["mergedLoss"] - found["trainedLoss"]) <= max(0.01 * found["trainedLoss"], 0.005)
