from __future__ import annotations

from typing import Any

from finetune_trainer.telemetry.metrics import render_metrics

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
