from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from finetune_cli.__main__ import main
from finetune_cli.exit_codes import ExitCode
from finetune_cli.speeds import measured_speed
from finetune_operator.sizing.cost.prices import parse_cost

from tests.support.operator import make_spec

LLAMA_8B = {
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
}


def job(
    tokens_per_second: float = 1000, config: dict[str, Any] | None = None, **entry: Any
) -> dict[str, Any]:
    """A finished job on an L4 that trained this fast."""
    return {
        "kind": "FineTuneJob",
        "spec": make_spec(),
        "status": {
            "dataset": {
                "trainingExamples": 1000,
                "validationExamples": 100,
                "longestExample": 512,
                "supervisedTokens": 90_000,
                "trainingTokens": 300_000,
            },
            "model": {"config": json.dumps(config or LLAMA_8B)},
            "plan": {
                "training": {
                    "microBatchSize": 4,
                    "gradientAccumulationSteps": 4,
                    "gradientCheckpointing": False,
                    "optimizer": "AdamW",
                    "weights": "Quantized",
                    "sequenceLength": 512,
                }
            },
            "attempts": [
                {
                    "stage": "Train",
                    "outcome": "Succeeded",
                    "gpuProduct": "NVIDIA L4",
                    "tokensPerSecond": str(tokens_per_second),
                    "memory": {"allocatedBytes": 10**10},
                    **entry,
                }
            ],
        },
    }


def of_several_gpus() -> dict[str, Any]:
    """A run whose GPUs also exchange weights and gradients."""
    document = job()
    document["status"]["plan"]["training"] |= {"nodes": 1, "gpusPerNode": 2, "parallelism": "DataParallel"}
    return document


def calibrated(
    folder: Path, capsys: pytest.CaptureFixture[str], *jobs: dict[str, Any]
) -> tuple[int, Any, str]:
    path = folder / "jobs.json"
    path.write_text(json.dumps({"kind": "List", "items": list(jobs)}), "utf-8")
    code = main(["calibrate", str(path), "--speeds"])
    shown = capsys.readouterr()
    return code, yaml.safe_load(shown.out), shown.err


def test_a_speed_is_a_share_of_the_published_one_and_grows_with_the_tokens() -> None:
    slow, fast = measured_speed(job(500)), measured_speed(job(1000))
    assert slow is not None
    assert fast is not None
    assert slow[0] == "NVIDIA L4"
    assert 0.1 < slow[1] < fast[1] < 1
    assert fast[1] == pytest.approx(2 * slow[1])


def test_the_printed_value_is_one_that_the_chart_takes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    jobs = [job(900), job(1000), job(1100), job(4000, gpuProduct="NVIDIA H100 80GB")]
    code, value, _ = calibrated(tmp_path, capsys, *jobs)
    assert code == 0
    found = parse_cost(value["cost"]).speeds
    assert [(entry.product, entry.runs) for entry in found] == [("NVIDIA H100 80GB", 1), ("NVIDIA L4", 3)]


@pytest.mark.parametrize(
    "changed",
    [
        job(memory={}),
        job(rung={"microBatchSize": 1, "gradientCheckpointing": True}),
        job(outcome="Failed"),
        job(stage="Merge"),
        job(gpuProduct="Unknown"),
        job(0),
        of_several_gpus(),
        job(config={**LLAMA_8B, "model_type": "unheard-of"}),
        job(30_000, config={**LLAMA_8B, "hidden_size": 64, "intermediate_size": 128}),
        {"kind": "FineTuneJob"},
        {"kind": "FineTuneJob", "spec": {}, "status": {"attempts": [{}]}},
    ],
)
def test_a_run_that_shows_no_speed_does_not_count(changed: dict[str, Any]) -> None:
    assert measured_speed(changed) is None


def test_without_a_measured_run_the_command_says_what_one_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, value, error = calibrated(tmp_path, capsys, job(memory={}))
    assert (code, value) == (ExitCode.USAGE, None)
    assert "at least one run must have a measured speed, found none among 1 FineTuneJobs" in error
