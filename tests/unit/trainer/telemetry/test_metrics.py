from __future__ import annotations

from typing import Any

import pytest
from finetune_trainer.telemetry.metrics import render_metrics
from prometheus_client.parser import text_string_to_metric_families

DOCUMENT: dict[str, Any] = {
    "stage": "Train",
    "activity": "Training",
    "step": 3,
    "totalSteps": None,
    "loss": 1.5,
    "learningRate": None,
    "gradientNorm": 0.25,
    "peakMemoryBytes": 7,
    "heartbeatTime": "2026-01-31T10:00:00.000Z",
}


def test_only_known_numbers_become_metrics() -> None:
    lines = [line for line in render_metrics(DOCUMENT).decode().splitlines() if not line.startswith("#")]
    names = {line.partition("{")[0].removeprefix("finetune_trainer_") for line in lines}
    assert names == {"step", "loss", "gradient_norm", "peak_memory_bytes", "heartbeat_timestamp_seconds"}
    assert 'finetune_trainer_loss{activity="Training",stage="Train"} 1.5' in lines


TRAINING: dict[str, Any] = {
    "steps": 4,
    "seconds": 6.0,
    "tokens": 900,
    "stepSeconds": 1.5,
    "evaluationLoss": 2.5,
    "routerAuxLoss": 1.125,
    "checkpointTime": "2026-01-31T10:00:00.000Z",
    "allocatedBytes": 10,
    "peakReservedBytes": 40,
}


def values(document: dict[str, Any]) -> dict[str, float]:
    """The values of all series by name, with the kind of memory behind it."""
    return {
        sample.name.removeprefix("finetune_trainer_") + sample.labels.get("kind", ""): sample.value
        for family in text_string_to_metric_families(render_metrics(document).decode())
        for sample in family.samples
    }


def test_a_training_has_counters_times_and_memory_by_kind() -> None:
    started = {"startTime": "2026-01-31T09:59:50.000Z", "training": TRAINING}
    found = values({**DOCUMENT, **started})
    assert found["tokens_total"] == 900
    assert (found["step_duration_seconds_count"], found["step_duration_seconds_sum"]) == (4, 6)
    assert found["not_training_ratio"] == pytest.approx(0.4)
    assert found["evaluation_loss"] == 2.5
    assert found["router_aux_loss"] == 1.125
    assert found["last_step_duration_seconds"] == 1.5
    assert found["last_checkpoint_timestamp_seconds"] == found["heartbeat_timestamp_seconds"]
    memory = {name: value for name, value in found.items() if name.startswith("gpu_memory_bytes")}
    assert memory == {"gpu_memory_bytesAllocated": 10, "gpu_memory_bytesReservedPeak": 40}


@pytest.mark.parametrize(
    ("member", "name"),
    [
        ("rankSeconds", "rank_step_duration_seconds"),
        ("rankDeviceBytes", "rank_gpu_memory_peak_bytes"),
        ("rankHostBytes", "rank_host_memory_peak_bytes"),
    ],
)
def test_each_rank_has_a_series_of_what_it_takes(member: str, name: str) -> None:
    document = {**DOCUMENT, "training": {**TRAINING, member: [5, 2]}}
    families = text_string_to_metric_families(render_metrics(document).decode())
    found = {
        sample.labels["rank"]: (sample.name, sample.value)
        for family in families
        for sample in family.samples
        if "rank" in sample.labels
    }
    assert found == {"0": (f"finetune_trainer_{name}", 5), "1": (f"finetune_trainer_{name}", 2)}


def test_a_cpu_has_no_series_of_gpu_memory() -> None:
    minimal = {"steps": 0, "seconds": 0.0, "tokens": 0}
    assert not any("gpu_memory" in name for name in values({**DOCUMENT, "training": minimal}))
