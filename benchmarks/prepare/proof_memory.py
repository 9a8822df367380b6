"""Prove generated rows and print the peak memory: `proof_memory.py TOKENIZER ROWS`.

It runs as a separate process, so the peak belongs to the proof alone.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from functools import partial
from pathlib import Path

from finetune_trainer.data.chat_template.template import ChatTemplate, load_tokenizer
from finetune_trainer.data.conversations.formats import parse_row
from finetune_trainer.data.dataset.proving import prove
from finetune_trainer.data.masking.masking import Masker

from benchmarks.prepare.proof import rows


def resident(process: int) -> int:
    """Return the proportional set size of a process in bytes, or 0 if it has ended."""
    try:
        text = Path(f"/proc/{process}/smaps_rollup").read_text(encoding="ascii")
    except OSError:
        return 0
    return next(int(line.split()[1]) * 1024 for line in text.splitlines() if line.startswith("Pss:"))


def family() -> list[int]:
    """Return the ids of this process and its children."""
    tasks = Path("/proc/self/task")
    children = [
        int(child)
        for task in tasks.iterdir()
        for child in (task / "children").read_text(encoding="ascii").split()
    ]
    return [os.getpid(), *children]


def main() -> None:
    """Print rows per second and the peak of all processes together."""
    tokenizer = load_tokenizer(Path(sys.argv[1]))
    count = int(sys.argv[2])
    masker = Masker(ChatTemplate(tokenizer, None, {}), 2048, [tokenizer.eos_token_id])
    peak = 0
    done = threading.Event()

    def sample() -> None:
        nonlocal peak
        while not done.wait(0.1):
            peak = max(peak, sum(resident(process) for process in family()))

    sampler = threading.Thread(target=sample)
    sampler.start()
    start = time.perf_counter()
    kept = 0
    for proven in prove(rows(1, count), masker, partial(parse_row, format_name="Messages", reasoning="Keep")):
        kept += isinstance(proven.outcome, list)
    seconds = time.perf_counter() - start
    done.set()
    sampler.join()
    print(json.dumps({"rows": count, "kept": kept, "rowsPerSecond": count / seconds, "peakBytes": peak}))


if __name__ == "__main__":
    main()
