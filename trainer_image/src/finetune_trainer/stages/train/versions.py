"""Versions of the software that decides the numbers of a training: in its checkpoints and in its result.

A run that continues with other versions does not compute what it would have computed with the first ones. It continues
all the same: the saved state is valid, hours of a GPU would be lost, and rounding differs between two GPUs as well. But
the change is never silent: the log and the result name both versions and the step.
"""

from __future__ import annotations

import importlib.metadata
import logging
import platform
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from transformers import TrainerCallback

from finetune_trainer.contract.bounds import MAXIMUM_VERSION_CHANGES
from finetune_trainer.contract.train_result import VersionChange

if TYPE_CHECKING:
    from collections.abc import Mapping

_log = logging.getLogger(__name__)

MEMBER = "SoftwareVersions"
"""The member of `stateful_callbacks` in trainer_state.json, which every checkpoint has."""
_PACKAGES = ("accelerate", "bitsandbytes", "peft", "transformers", "trl")
_ABSENT = "none"


def current_versions() -> dict[str, str]:
    """Return the version of each package that touches numbers, and of CUDA ("none" in a torch without it)."""
    return {
        **{name: importlib.metadata.version(name) for name in _PACKAGES},
        # Unlike the package's metadata, it names the build, as in 2.15.0+cu132.
        "torch": str(torch.__version__),
        "cuda": str(torch.version.cuda or _ABSENT),
    }


def compiler_versions() -> dict[str, str]:
    """Return the versions that decide what compiled code looks like: torch, its CUDA, Triton and Python."""
    try:
        triton = importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        triton = _ABSENT
    versions = current_versions()
    python = ".".join(platform.python_version_tuple()[:2])
    return {"torch": versions["torch"], "cuda": versions["cuda"], "triton": triton, "python": python}


@dataclass(frozen=True)
class VersionRecord:
    """The versions of a process, and all changes of the run until then, the oldest first."""

    versions: Mapping[str, str]
    changes: tuple[VersionChange, ...] = ()

    def continued(self, current: Mapping[str, str], step: int) -> VersionRecord:
        """Return the record of a process with the versions `current` that continues this one's run after `step`.

        If there are more changes than the result may hold, the newest stay.
        """
        changes = [
            VersionChange(
                name=name,
                before=self.versions.get(name, _ABSENT),
                after=current.get(name, _ABSENT),
                step=step,
            )
            for name in sorted(self.versions.keys() | current.keys())
            if self.versions.get(name) != current.get(name)
        ]
        return VersionRecord(current, (*self.changes, *changes)[-MAXIMUM_VERSION_CHANGES:])

    def document(self) -> dict[str, Any]:
        """Return the record as JSON."""
        return {"versions": dict(self.versions), "changes": [change.document() for change in self.changes]}

    @classmethod
    def read(cls, document: Mapping[str, Any]) -> VersionRecord:
        """Read what `document` returned."""
        changes = tuple(VersionChange.model_validate(change) for change in document["changes"])
        return cls(document["versions"], changes)


def note_versions(state: Any) -> VersionRecord:
    """Note this process's versions in transformers' TrainerState, and return the record.

    A difference from the versions that a checkpoint left in the state is a warning in the log.
    """
    current = current_versions()
    saved = state.stateful_callbacks.get(MEMBER)
    before = VersionRecord(current) if saved is None else VersionRecord.read(saved)
    if saved is None and state.global_step:
        _log.info("the checkpoint of step %d does not name the versions of its software", state.global_step)
    record = before.continued(current, state.global_step)
    for change in record.changes:
        if change not in before.changes:
            _log.warning(
                "%s was %s until step %d and is %s now, so the rest of the run may compute other last digits; use one "
                "trainer image for a run that must be reproducible",
                change.name,
                change.before,
                change.step,
                change.after,
            )
    state.stateful_callbacks[MEMBER] = record.document()
    return record


class VersionCallback(TrainerCallback):
    """Notes the versions before the first step, so that every checkpoint has them."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002 -- the base class's signature
        """Note them in the state, which is that of the checkpoint if the run continues from one."""
        note_versions(state)
