from __future__ import annotations

import numpy as np
from finetune_trainer.stages.train.ranks.usage import RankUsage


def test_the_peak_of_host_memory_is_that_of_this_process() -> None:
    size = 64 << 20
    before = RankUsage.read(0.5)
    held = np.ones(before.host_bytes + size, dtype=np.uint8)
    found = RankUsage.read(0.5)
    assert found.host_bytes >= len(held) > before.host_bytes
    assert (found.seconds, found.device_bytes) == (0.5, 0)


def test_numbers_of_any_possible_size_stay_exact() -> None:
    usage = RankUsage(0.25, (1 << 53) - 1, 1 << 52)
    assert RankUsage.of([float(number) for number in usage.numbers()]) == usage
