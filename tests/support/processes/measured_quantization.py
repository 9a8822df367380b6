"""Quantize a model folder in this process and print the memory use: `measured_quantization.py MODEL WORKSPACE`."""

from __future__ import annotations

import json
import sys
import threading
from pathlib import Path

from finetune_trainer.quantization.quantize import quantize_model
from finetune_trainer.sources.model import DirectoryModel
from finetune_trainer.telemetry.reporter import NullReporter
from finetune_trainer.workspace.layout import WorkspaceLayout


def resident() -> dict[str, int]:
    """Return the anonymous and the file-backed resident bytes."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    values = {line.split(":")[0]: line.split()[1] for line in lines if line.startswith("Rss")}
    return {name: int(values[name]) * 1024 for name in ("RssAnon", "RssFile")}


def main() -> None:
    """Sample the memory every 5 ms until the model is quantized."""
    before = resident()
    peak = dict(before)
    done = threading.Event()

    def sample() -> None:
        while not done.wait(0.005):
            for name, value in resident().items():
                peak[name] = max(peak[name], value)

    sampler = threading.Thread(target=sample)
    sampler.start()
    try:
        model = quantize_model(
            DirectoryModel(Path(sys.argv[1])), WorkspaceLayout(Path(sys.argv[2])), NullReporter()
        )
    finally:
        done.set()
        sampler.join()
    print(json.dumps({"before": before, "peak": peak, "bytes": model.bytes}))


if __name__ == "__main__":
    main()
