"""Run a stage on volumes that are too small, each a new tmpfs: `small_volume.py STAGE RUN_FILE MOUNT SIZES`.

Needs a separate mount namespace (`unshare -Urm`). SIZES is a JSON list of KiB.
For each size, the folder MOUNT is copied into a tmpfs that is mounted over it and has this much free space.
Prints a JSON list of [KiB, exit code or minus the signal, reason]. The reason of a success is null.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from finetune_trainer.__main__ import main as trainer
from finetune_trainer.runner import load_stage


def copied_size(folder: Path) -> int:
    """Return the KiB that a copy takes on a tmpfs, whose blocks are pages. Folders take none."""
    pages = sum(-(-path.stat().st_size // 4096) for path in folder.rglob("*") if path.is_file())
    return 4 * pages


def attempt(stage: str, run: Path, result: Path) -> int:
    """Fork, run the stage, and return its outcome. A write to mapped memory can kill a stage."""
    process = os.fork()
    if process == 0:
        code = 70
        try:
            code = int(trainer([stage, "--run", str(run), "--termination-message", str(result)]))
        finally:
            os._exit(code)
    _, status = os.waitpid(process, 0)
    return os.waitstatus_to_exitcode(status)


def main() -> None:
    """Try each size."""
    stage, run, mount = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    load_stage(stage)
    ends = []
    with tempfile.TemporaryDirectory() as scratch:
        original = Path(scratch) / "original"
        shutil.copytree(mount, original, symlinks=True)
        for extra in json.loads(sys.argv[4]):
            result = Path(scratch) / "result.json"
            result.unlink(missing_ok=True)
            size = f"size={copied_size(original) + extra}k"
            subprocess.run(["mount", "-t", "tmpfs", "-o", size, "none", mount], check=True)
            try:
                shutil.copytree(original, mount, symlinks=True, dirs_exist_ok=True)
                code = attempt(stage, run, result)
            finally:
                subprocess.run(["umount", mount], check=True)
            document = json.loads(result.read_text()) if result.is_file() else {"reason": "none"}
            ends.append([extra, code, document.get("reason")])
    print(json.dumps(ends))


if __name__ == "__main__":
    main()
