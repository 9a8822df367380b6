"""The paths by which the stages of one job exchange files, and the markers of finished steps."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class WorkspaceLayout:
    """Paths inside one job's workspace.

    `dataset/` holds Arrow tables with the columns `row` (int32, 1-based row of the source), `input_ids` and
    `labels` (lists of int32, equal length, -100 where nothing is learned). `base/` holds the base model's own
    small files byte for byte and `layout.json`, the tensors of each of its weight files in order. `model/` is
    the 4-bit checkpoint that TRAIN loads and MERGE dequantizes.
    """

    root: Path

    @property
    def training_table(self) -> Path:
        """Examples to train on."""
        return self.root / "dataset" / "training.arrow"

    @property
    def validation_table(self) -> Path:
        """Examples held out."""
        return self.root / "dataset" / "validation.arrow"

    @property
    def dataset_parts(self) -> Path:
        """Proven rows before they enter the tables, and the ledger of the rows that were read."""
        return self.root / "dataset" / "parts"

    @property
    def report(self) -> Path:
        """Reports for people and programs, published with the artifacts."""
        return self.root / "report"

    @property
    def dataset_report(self) -> Path:
        """The whole dataset report as JSON; the result carries its head."""
        return self.report / "dataset.json"

    @property
    def dataset_page(self) -> Path:
        """The dataset report as an HTML page."""
        return self.report / "dataset.html"

    @property
    def base(self) -> Path:
        """Config, tokenizer and other small files of the base model, byte for byte."""
        return self.root / "base"

    @property
    def base_layout(self) -> Path:
        """JSON: `{"files": [{"name", "tensors": [{"name", "dtype", "shape"}]}], "quantized": [module, ...]}`."""
        return self.base / "layout.json"

    @property
    def quantized_model(self) -> Path:
        """The bitsandbytes checkpoint."""
        return self.root / "model"

    @property
    def original(self) -> Path:
        """The base's own weight files, and `manifest.json` with their digests; only if the job merges into them."""
        return self.root / "original"

    @property
    def checkpoints(self) -> Path:
        """Training state for a resume."""
        return self.root / "train" / "checkpoints"

    @property
    def adapter(self) -> Path:
        """The trained adapter in peft's format."""
        return self.root / "train" / "adapter"

    def meeting(self, attempt: int) -> Path:
        """JSON: where the pods of an attempt on several nodes meet."""
        return self.root / "train" / f"meeting-{attempt}.json"

    @property
    def verification(self) -> Path:
        """Safetensors file: the trained model's predictions on held-out rows, for MERGE's comparison."""
        return self.root / "train" / "verification.safetensors"

    @property
    def progress(self) -> Path:
        """The last progress document, replaced atomically."""
        return self.root / "progress.json"

    @property
    def timeline(self) -> Path:
        """The attempts of all stages with their times and outcomes."""
        return self.root / "timeline.json"

    def marker(self, step: str) -> Path:
        """File whose presence proves that `step` finished; it holds the digest of its inputs and its result."""
        return self.root / "markers" / f"{step}.json"

    @property
    def logs(self) -> Path:
        """The log of each attempt, redacted."""
        return self.root / "logs"

    def log(self, stage: str, attempt: int) -> Path:
        """Log of one stage's attempt, redacted. For a step of a stage, `stage` is the name of the step."""
        return self.logs / f"{stage.lower()}-{attempt}.log"


def write_json_atomically(path: Path, document: Any) -> None:
    """Write JSON as `write_text_atomically` writes text."""
    write_text_atomically(path, json_text(document))


def json_text(document: Any) -> str:
    """Return the text of a JSON file: equal documents give equal bytes."""
    return json.dumps(document, ensure_ascii=False, sort_keys=True)


def write_text_atomically(path: Path, text: str) -> None:
    """Write UTF-8 as `write_bytes_atomically` writes bytes."""
    write_bytes_atomically(path, text.encode())


def write_bytes_atomically(path: Path, content: bytes) -> None:
    """Write a file so that a reader sees the old one or the new one and nothing between, even after a crash."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def digest_of(document: Any) -> str:
    """`sha256:` digest of a document's canonical JSON (sorted keys, no spaces, UTF-8)."""
    canonical = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return "sha256:" + hashlib.sha256(canonical.encode()).hexdigest()


def read_marker(layout: WorkspaceLayout, step: str, inputs: str) -> dict[str, Any] | None:
    """Return the result of `step` if it finished earlier with exactly these `inputs` (a digest), else None."""
    try:
        marker = json.loads(layout.marker(step).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    if not isinstance(marker, dict) or marker.get("inputs") != inputs:
        return None
    result = marker.get("result")
    return result if isinstance(result, dict) else None


def write_marker(layout: WorkspaceLayout, step: str, inputs: str, result: dict[str, Any]) -> None:
    """Record that `step` finished with these `inputs` (a digest) and this result."""
    write_json_atomically(layout.marker(step), {"inputs": inputs, "result": result})
