from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

from finetune_trainer.kernels.cache import use_shipped_kernels

from tests.support.tiny_models import conversation_rows, write_rows

if TYPE_CHECKING:
    from pathlib import Path


def machine_code(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*.nbc")}


def run(arguments: list[str], **variables: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "finetune_trainer", *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1", **variables},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr


def test_the_shipped_kernels_contain_every_kernel_that_prepare_uses(
    tmp_path: Path, run_document: dict[str, Any], monkeypatch: Any
) -> None:
    """The pod compiles nothing, so the cache after PREPARE equals the one in the image."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path for path in sys.path if path.endswith("src")))
    run(["compile", str(tmp_path / "shipped")])
    shipped = machine_code(tmp_path / "shipped")
    targets = tmp_path / "targets.txt"
    targets.write_text("what is 7 + 1\n", encoding="utf-8")
    # The rows have near copies and leaks, so that all loops of the report run.
    rows = [*conversation_rows(20), *conversation_rows(20)]
    for row in rows[20:]:
        row["messages"][1]["content"] += " indeed"
    write_rows(tmp_path / "rows.jsonl", rows)
    document = {**run_document, "dataset": {**run_document["dataset"], "targetPromptsPath": str(targets)}}
    run_file = tmp_path / "run.json"
    run_file.write_text(json.dumps(document))
    cache = tmp_path / "cache"
    run(
        ["prepare", "--run", str(run_file)],
        FINETUNE_KERNELS=str(tmp_path / "shipped"),
        NUMBA_CACHE_DIR=str(cache),
    )
    assert machine_code(cache) == shipped


def test_an_existing_cache_is_not_changed(tmp_path: Path) -> None:
    (tmp_path / "shipped").mkdir()
    (tmp_path / "shipped" / "new").touch()
    cache = tmp_path / "cache"
    cache.mkdir()
    environment = {"FINETUNE_KERNELS": str(tmp_path / "shipped"), "NUMBA_CACHE_DIR": str(cache)}
    use_shipped_kernels(environment)
    assert list(cache.iterdir()) == []


def test_without_shipped_kernels_the_process_compiles_its_own(tmp_path: Path) -> None:
    environment = {"FINETUNE_KERNELS": str(tmp_path / "missing"), "NUMBA_CACHE_DIR": str(tmp_path / "cache")}
    use_shipped_kernels(environment)
    assert not (tmp_path / "cache").exists()
