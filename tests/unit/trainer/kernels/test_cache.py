from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from finetune_trainer.kernels.cache import use_shipped_kernels

from tests.support.kernels import CACHE_VARIABLE
from tests.support.tiny_models import conversation_rows, write_rows

# What numba prints about its cache if NUMBA_DEBUG_CACHE is set.
CACHE_LINE = re.compile(r"^\[cache\] data (loaded from|saved to) '(.*)'$", re.MULTILINE)


def run(arguments: list[str], **variables: str) -> tuple[set[Path], set[Path]]:
    """Run the trainer, and return the files of machine code that it loaded and that it saved."""
    done = subprocess.run(
        [sys.executable, "-m", "finetune_trainer", *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1", "NUMBA_DEBUG_CACHE": "1", **variables},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    found = CACHE_LINE.findall(done.stdout)
    loaded, saved = (
        {Path(path) for done_with, path in found if done_with == what} for what in ("loaded from", "saved to")
    )
    return loaded, saved


def fill_as_an_image_does(folder: Path) -> None:
    """Leave in the new folder the machine code that `compile` uses, and no other.

    The folder begins with the kernels that the tests have compiled, so that nothing is compiled twice.
    """
    tested = Path(os.environ[CACHE_VARIABLE])
    if tested.is_dir():
        shutil.copytree(tested, folder)
    used, compiled = run(["compile", str(folder)])
    if compiled:  # numba also saved kernels that only others call
        used, compiled = run(["compile", str(folder)])
    assert compiled == set(), "the folder must be complete after its first use"
    for path in folder.rglob("*.nbc"):
        if path not in used:
            path.unlink()


@pytest.mark.slow
def test_the_shipped_kernels_contain_every_kernel_that_prepare_uses(
    tmp_path: Path, run_document: dict[str, Any], monkeypatch: Any
) -> None:
    """The pod compiles nothing: it loads all its kernels from its copy of the image's folder."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path for path in sys.path if path.endswith("src")))
    fill_as_an_image_does(tmp_path / "shipped")
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
    loaded, compiled = run(
        ["prepare", "--run", str(run_file)],
        FINETUNE_KERNELS=str(tmp_path / "shipped"),
        NUMBA_CACHE_DIR=str(tmp_path / "cache"),
    )
    assert compiled == set()
    assert loaded


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
