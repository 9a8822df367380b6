"""The first rows of a dataset, proven by the trainer in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from finetune_operator.api.spec import FineTuneJobSpec


@dataclass(frozen=True)
class ProvenRows:
    """The outcome: rows read, the rejected ones with their reasons, and a message about the whole file if it is broken."""

    rows: int
    rejected: tuple[dict[str, Any], ...]
    fault: str | None = None
    format: str | None = None


def prove_rows(data: Path, tokenizer: Path, spec: FineTuneJobSpec, count: int) -> ProvenRows:
    """Prove the first `count` rows of the file `data` with the settings of `spec`."""
    command = [
        *(sys.executable, "-m", "finetune_trainer", "masks"),
        *("--tokenizer", str(tokenizer), "--dataset", str(data)),
        *("--format", spec.dataset.format, "--reasoning", spec.dataset.reasoning),
        *("--control-tokens", spec.dataset.control_tokens),
        *("--maximum-length", str(spec.training.maximum_length)),
    ]
    rows, rejected = 0, []
    with (
        TemporaryFile("w+", encoding="utf-8") as messages,
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=messages, text=True, encoding="utf-8"
        ) as process,
    ):
        for line in process.stdout or ():
            row = json.loads(line)
            rows += 1
            if not row["accepted"]:
                rejected.append({name: row.get(name) for name in ("row", "reason", "field", "detail")})
            if rows == count:
                process.terminate()
                break
        code = process.wait()
        messages.seek(0)
        lines = [line.strip() for line in messages if line.strip()]
    detected = next((line.removeprefix("format ") for line in lines if line.startswith("format ")), None)
    broken = rows < count and code != 0
    return ProvenRows(rows, tuple(rejected), lines[-1] if broken and lines else None, detected)
