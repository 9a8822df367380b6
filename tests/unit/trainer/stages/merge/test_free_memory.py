from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from finetune_trainer.stages.merge.free_memory import free_memory

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("names", [("memory.max", "memory.current"), ("limit_in_bytes", "usage_in_bytes")])
@pytest.mark.parametrize(
    ("limit", "used", "free"),
    [
        ("max", "5", 3 * 1024),
        ("9223372036854771712", "5", 3 * 1024),
        ("2048", "1024", 1024),
        ("1024", "4096", 0),
        (None, None, 3 * 1024),
    ],
)
def test_free_memory_is_limited_by_the_node_and_either_cgroup(
    tmp_path: Path, names: tuple[str, str], limit: str | None, used: str | None, free: int
) -> None:
    (tmp_path / "meminfo").write_text("MemTotal: 9 kB\nMemAvailable: 3 kB\n")
    (tmp_path / "memory").mkdir()
    prefix = "memory/memory." if names[0].startswith("limit") else ""
    if limit is not None and used is not None:
        (tmp_path / f"{prefix}{names[0]}").write_text(f"{limit}\n")
        (tmp_path / f"{prefix}{names[1]}").write_text(f"{used}\n")
    assert free_memory(tmp_path, tmp_path / "meminfo") == free
