"""Ways to write a merged model, each in a process of its own: time, peak memory and bytes read from the disk.

`python -m benchmarks.merge.routes copy|merge|peft ROOT` prints one line of JSON. The source files are dropped from the page
cache before, and the output is flushed to disk, so that all routes use the same disk in the same way.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from pathlib import Path


def copy_output(root: Path) -> Callable[[], Path]:
    """Copy the files of the merged model, which must exist."""
    from benchmarks.prepare.weights import copy  # noqa: PLC0415 -- its imports are no memory of the other routes

    target = root / "copy"
    target.mkdir()

    def run() -> Path:
        for path in sorted((root / "merge").glob("*.safetensors")):
            copy(path, target / path.name)
        return target

    return run


def merge(root: Path) -> Callable[[], Path]:
    """Merge as the stage does, with its check of the read files, without the proof on rows."""
    from finetune_trainer.contract.run_spec import RunSpec  # noqa: PLC0415 -- its imports are memory of this route
    from finetune_trainer.quantization import dequantize, low_rank, rounding  # noqa: PLC0415 -- as above
    from finetune_trainer.stages.merge.weight_folders import write_weights  # noqa: PLC0415 -- as above
    from finetune_trainer.workspace.layout import WorkspaceLayout  # noqa: PLC0415 -- as above

    # The image ships compiled loops.
    for module in (dequantize, low_rank, rounding):
        module.warm_up()
    workspace, target = WorkspaceLayout(root / "workspace"), root / "merge"
    digest = (root / "digest").read_text("ascii")
    spec = RunSpec.model_validate_json((root / "run.json").read_text("utf-8"))
    target.mkdir()

    def run() -> Path:
        write_weights(spec, workspace, "Merged", digest, target, root / "journals", lambda _done, _all: None)
        return target

    return run


def peft(root: Path) -> Callable[[], Path]:
    """Merge with peft into the 16-bit base, and save."""
    import torch  # noqa: PLC0415 -- its imports are memory of this route
    from peft import PeftModel  # noqa: PLC0415 -- as above
    from transformers import AutoModelForCausalLM  # noqa: PLC0415 -- as above

    target = root / "peft"

    def run() -> Path:
        model = AutoModelForCausalLM.from_pretrained(root / "base", dtype=torch.bfloat16)
        merged = PeftModel.from_pretrained(model, root / "workspace" / "train" / "adapter").merge_and_unload()
        merged.save_pretrained(target, max_shard_size="500MB")
        for path in target.iterdir():
            with path.open("rb") as file:
                os.fsync(file.fileno())
        return target

    return run


ROUTES = {"copy": copy_output, "merge": merge, "peft": peft}


def drop_from_cache(folder: Path) -> None:
    """Let the next read of every file below `folder` come from the disk."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _status(name: str) -> int:
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text("ascii").splitlines())
    return int(fields[name].split()[0]) * 1024


def _bytes_read() -> int:
    fields = dict(line.split(":") for line in Path("/proc/self/io").read_text("ascii").splitlines())
    return int(fields["read_bytes"])


def main() -> None:
    """Run one route and print its figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("route", choices=ROUTES)
    parser.add_argument("root", type=Path)
    options = parser.parse_args()
    run = ROUTES[options.route](options.root)
    drop_from_cache(options.root)
    imported, read, start = _status("VmRSS"), _bytes_read(), time.perf_counter()
    target = run()
    seconds = time.perf_counter() - start
    written = sum(path.stat().st_size for path in target.glob("*.safetensors"))
    figures = {
        "seconds": seconds,
        "megabytesPerSecond": written / seconds / 1e6,
        "bytesWritten": written,
        "bytesRead": _bytes_read() - read,
        "peakBytes": _status("VmHWM"),
        "importedBytes": imported,
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
