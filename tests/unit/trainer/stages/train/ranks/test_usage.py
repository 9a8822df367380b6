from __future__ import annotations

import resource
from pathlib import Path

import numpy as np
from finetune_trainer.stages.train.ranks.usage import RankUsage


def test_the_peak_of_host_memory_is_that_of_this_process() -> None:
    before = RankUsage.read(0.5)
    present = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    # Just enough to exceed the peak of all earlier tests.
    held = np.ones(max(0, before.host_bytes - present) + (64 << 20), dtype=np.uint8)
    found = RankUsage.read(0.5)
    del held
    assert found.host_bytes > before.host_bytes + (16 << 20)
    assert (found.seconds, found.device_bytes) == (0.5, 0)


def test_numbers_of_any_possible_size_stay_exact() -> None:
    usage = RankUsage(0.25, (1 << 53) - 1, 1 << 52)
    assert RankUsage.of([float(number) for number in usage.numbers()]) == usage
