"""Time of TRAIN's checkpoints: how long training waits for the copy, and how long a stop takes in all.

Run `python -m benchmarks.checkpoints` from the repository's root. The state is that of a rank-64 adapter on every linear
layer of an 8B Llama: 168 million values in float32 with the 8-bit moments of a GPU, or with the 32-bit moments of a CPU.
The copy of the same number of bytes on the same disk is measured in turns with it, because disks and their load differ.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from finetune_trainer.stages.train.checkpoint_files import write_files
from finetune_trainer.stages.train.checkpoints import newest_checkpoint, publish_checkpoint
from finetune_trainer.stages.train.random_states import random_states
from finetune_trainer.stages.train.snapshot import HostMemory, Snapshot
from transformers import TrainerState

_HIDDEN, _INTERMEDIATE, _KEYS, _LAYERS = 4096, 14336, 1024, 32
_MATRICES = {
    "q_proj": (_HIDDEN, _HIDDEN),
    "k_proj": (_HIDDEN, _KEYS),
    "v_proj": (_HIDDEN, _KEYS),
    "o_proj": (_HIDDEN, _HIDDEN),
    "gate_proj": (_HIDDEN, _INTERMEDIATE),
    "up_proj": (_HIDDEN, _INTERMEDIATE),
    "down_proj": (_INTERMEDIATE, _HIDDEN),
}
_BLOCK = 256
_SECONDS_PER_STEP = 5.0
_INTERVAL_STEPS = 200


def state(moments: str, layers: int, rank: int) -> dict[str, Any]:
    """Return adapter and optimizer state as TRAIN has them; `moments` is `8bit` or `32bit`."""
    adapter = {
        f"base_model.model.model.layers.{layer}.{name}.lora_{side}.weight": torch.rand(
            (rank, inputs) if side == "A" else (outputs, rank)
        )
        for layer in range(layers)
        for name, (inputs, outputs) in _MATRICES.items()
        for side in "AB"
    }
    states: dict[int, dict[str, torch.Tensor]] = {}
    for index, value in enumerate(adapter.values()):
        if moments == "32bit":
            states[index] = {"exp_avg": torch.rand_like(value), "exp_avg_sq": torch.rand_like(value)}
        else:
            states[index] = {
                name: torch.randint(0, 255, value.shape, dtype=torch.uint8) for name in ("state1", "state2")
            } | {name: torch.rand(-(-value.numel() // _BLOCK)) for name in ("absmax1", "absmax2")}
    return {"adapter": adapter, "optimizer": {"state": states, "param_groups": []}}


def plain_copy(source: Path, target: Path) -> float:
    """Return the seconds of a copy with shutil that is on the disk at its end."""
    started = time.perf_counter()
    shutil.copyfile(source, target)
    with target.open("rb") as file:
        os.fsync(file.fileno())
    seconds = time.perf_counter() - started
    target.unlink()
    return seconds


def measure(moments: str, options: argparse.Namespace) -> dict[str, Any]:
    """Return medians of all rounds in seconds, and the ratios."""
    training = state(moments, options.layers, options.rank)
    memory = HostMemory()
    copies, writes, processors, plains = [], [], [], []
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        root = Path(folder)
        for step in range(1, options.rounds + 1):
            started = time.perf_counter()
            copied = memory.copy(training)
            copies.append(time.perf_counter() - started)
            processor = time.process_time()
            snapshot = Snapshot(
                step=step,
                scheduler={},
                randomness=random_states(),
                state=vars(TrainerState(global_step=step)),
                **copied,
            )
            started = time.perf_counter()
            snapshot.require_finite()
            target = publish_checkpoint(
                root / "checkpoints", step, partial(write_files, snapshot=snapshot, run={})
            )
            writes.append(time.perf_counter() - started)
            processors.append(time.process_time() - processor)
            whole = root / "whole"
            with whole.open("wb") as file:
                for path in sorted(target.iterdir()):
                    with path.open("rb") as part:
                        shutil.copyfileobj(part, file, 1 << 24)
            plains.append(plain_copy(whole, root / "copy"))
            whole.unlink()
        started = time.perf_counter()
        newest_checkpoint(root / "checkpoints")
        verified = time.perf_counter() - started
    # The first copy gets fresh memory from the kernel.
    copy, write, plain = (statistics.median(times) for times in (copies[1:] or copies, writes, plains))
    return {
        "moments": moments,
        "gigabytes": snapshot.bytes / 1e9,
        "firstCopySeconds": copies[0],
        "copySeconds": copy,
        "writeSeconds": write,
        "writeProcessorSeconds": statistics.median(processors),
        "stopSeconds": copy + write,
        "plainCopySeconds": plain,
        "stopPerPlainCopy": (copy + write) / plain,
        "verifySeconds": verified,
        "blockedShare": copy / (_SECONDS_PER_STEP * _INTERVAL_STEPS),
    }


def main() -> None:
    """Print one JSON object per kind of moments."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rank", type=int, default=64)
    parser.add_argument("--layers", type=int, default=_LAYERS)
    parser.add_argument("--moments", choices=["8bit", "32bit"], action="append")
    parser.add_argument("--folder", type=Path, help="folder on the disk to measure")
    options = parser.parse_args()
    for moments in options.moments or ["8bit", "32bit"]:
        print(json.dumps(measure(moments, options)), flush=True)


if __name__ == "__main__":
    main()
