from __future__ import annotations

import io
from pathlib import Path

from finetune_cli.run.devices import choose_device


def test_auto_without_a_driver_is_the_cpu_and_says_so(tmp_path: Path) -> None:
    messages = io.StringIO()
    assert choose_device("auto", messages, tmp_path / "absent") == "cpu"
    assert "training on the CPU" in messages.getvalue()


def test_auto_selects_a_gpu_that_the_driver_shows(tmp_path: Path) -> None:
    (tmp_path / "0000:01:00.0").mkdir()
    messages = io.StringIO()
    assert choose_device("auto", messages, tmp_path) == "cuda"
    assert "1 GPU" in messages.getvalue()


def test_an_explicit_device_is_kept(tmp_path: Path) -> None:
    """Without a GPU, `cuda` does not become `cpu`: the trainer fails with GpuNotVisible."""
    assert choose_device("cuda", io.StringIO(), tmp_path / "absent") == "cuda"
