"""What a checkpoint must have in common with the run that resumes from it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from finetune_trainer.workspace.layout import read_marker

if TYPE_CHECKING:
    from collections.abc import Mapping

    from finetune_trainer.contract.run_spec import RunSpec
    from finetune_trainer.workspace.layout import WorkspaceLayout

_FREE = {
    "microBatchSize",
    "gradientCheckpointing",
    "checkpoint",
    "ladder",
    "learningRateReason",
    "packing",
    "kernels",
    "optimizer",
    "weights",
    "parallelism",
}
"""Settings that change neither the data of an optimizer step nor its mathematics.

The optimizer is no such setting. It is named by the form of its moments, see `_moments`.
"""


@dataclass(frozen=True)
class Origin:
    """A run as its checkpoints describe it.

    `document` has the digests of spec and dataset and the settings. Trainers before contract 1.5 wrote checkpoints
    without such a document. They belong to this run if they are not older than `began` (seconds since the epoch), the
    time at which the run measured the base; None if it has not.
    """

    document: Mapping[str, Any]
    began: float | None

    def difference(self, saved: object, written: float) -> str | None:
        """Describe the first difference from the document of a checkpoint of the time `written`; None if both agree.

        `saved` is None if the checkpoint has no document.

        Other members of the checkpoint's document are ignored.
        """
        if saved is None:
            if "optimizer" in self.document.get("settings", {}):
                return "it names no run, and its trainer had another optimizer"
            owned = self.began is not None and written >= self.began
            return None if owned else "it names no run, and it is older than this run"
        if not isinstance(saved, dict):
            return "its run must be an object"
        for name, value in self.document.items():
            if name not in saved:
                return f"it does not name its {name}"
            if saved[name] != value:
                return _difference(name, saved[name], value)
        return None


def origin_of(run: RunSpec, workspace: WorkspaceLayout) -> Origin:
    """Describe the run of this workspace.

    Settings at their defaults are left out: a newer trainer may know more settings, and its defaults mean what the
    older one did.
    """
    prepared = read_marker(workspace, "prepare", run.spec_hash) or {}
    dataset = prepared.get("dataset")
    settings = run.training.model_dump(mode="json", by_alias=True, exclude_defaults=True)
    return Origin(
        {
            "specHash": run.spec_hash,
            "dataset": dataset.get("digest") if isinstance(dataset, dict) else None,
            "settings": {name: value for name, value in settings.items() if name not in _FREE}
            | _moments(run),
        },
        _began(workspace, run.spec_hash),
    )


def _moments(run: RunSpec) -> dict[str, str]:
    """Return the optimizer if its moments have another form than those of trainers before 1.7.

    On a GPU these had 8 bits. Such a trainer does not resume from moments in float32, because it lacks this setting.
    """
    return {"optimizer": "AdamW"} if run.device == "cuda" and run.training.optimizer == "AdamW" else {}


def _began(workspace: WorkspaceLayout, spec_hash: str) -> float | None:
    """Return when the base was measured for this spec. Every trainer does that before its first step."""
    if read_marker(workspace, "base-evaluation", spec_hash) is None:
        return None
    return workspace.marker("base-evaluation").stat().st_mtime


def _difference(name: str, saved: object, current: object) -> str:
    if isinstance(saved, dict) and isinstance(current, dict):
        for member in sorted(saved.keys() | current.keys()):
            if saved.get(member) != current.get(member):
                return _difference(f"{name}.{member}", saved.get(member), current.get(member))
    return f"it was written with {name} {saved}, and this run has {current}"
