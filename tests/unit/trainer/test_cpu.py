from __future__ import annotations

import os
from pathlib import Path

import pytest
from finetune_trainer.cpu import available_cpus, limit_threads


@pytest.mark.parametrize(
    ("limit", "most"),
    [("150000 100000", 2), ("50000 100000", 1), ("max 100000", 10_000), ("nonsense", 10_000)],
)
def test_threads_respect_the_cgroup_limit(tmp_path: Path, limit: str, most: int) -> None:
    path = tmp_path / "cpu.max"
    path.write_text(limit)
    assert 1 <= available_cpus(path) <= most


def test_without_a_cgroup_the_affinity_is_the_limit(tmp_path: Path) -> None:
    assert available_cpus(tmp_path / "absent") == len(os.sched_getaffinity(0))


def test_a_limit_that_the_user_set_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    for name in ("NUMBA_NUM_THREADS", "RAYON_NUM_THREADS", "OMP_WAIT_POLICY"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    limit_threads(2)
    assert (os.environ["OMP_NUM_THREADS"], os.environ["NUMBA_NUM_THREADS"]) == ("7", "2")
    assert os.environ["OMP_WAIT_POLICY"] == "PASSIVE"
