"""What is known about the rungs on this device, kept in the workspace: those that failed, and the one that was probed.

A run that was interrupted does not take a failed rung again, and does not repeat a probe that has passed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

import torch

from finetune_trainer.contract.part import Part
from finetune_trainer.contract.run_spec import DEFAULT_OPTIMIZER
from finetune_trainer.contract.train_result import FailedRungResult, ProbeResult, RungResult
from finetune_trainer.stages.train.rungs import rung_members
from finetune_trainer.workspace.layout import read_marker, write_marker

if TYPE_CHECKING:
    from collections.abc import Sequence

    from finetune_trainer.contract.run_spec import Rung, RunSpec
    from finetune_trainer.workspace.layout import WorkspaceLayout

_MARKER = "ladder"


class Device(Part):
    """A kind of device: two devices that are equal hold the same."""

    name: str
    bytes: int


class ProbedRung(RungResult):
    """A rung whose probe has passed, with the peaks."""

    result: ProbeResult


class Ladder(Part):
    """The experience with the rungs of one run on one kind of device."""

    device: Device
    failed: tuple[FailedRungResult, ...] = ()
    probed: ProbedRung | None = None

    @classmethod
    def load(cls, workspace: WorkspaceLayout, spec_hash: str, device: Device) -> Self:
        """Return what an earlier process has left; experience with another kind of device does not count."""
        found = cls.read(read_marker(workspace, _MARKER, spec_hash))
        return found if found is not None and found.device == device else cls(device=device)

    def save(self, workspace: WorkspaceLayout, spec_hash: str) -> None:
        """Keep it for the next process, and for the next device of this kind."""
        write_marker(workspace, _MARKER, spec_hash, self.document())

    @staticmethod
    def forget(workspace: WorkspaceLayout) -> None:
        """Remove it: the next process starts with the first rung."""
        workspace.marker(_MARKER).unlink(missing_ok=True)

    def open_runs(self, runs: Sequence[RunSpec]) -> tuple[RunSpec, ...]:
        """Return those of the rungs' run specs whose rung has not failed."""
        failed = {_key(each) for each in self.failed}
        return tuple(run for run in runs if _key(run.training) not in failed)

    def with_failure(self, failed: FailedRungResult) -> Self:
        """Return the ladder with a rung that did not fit."""
        others = tuple(each for each in self.failed if _key(each) != _key(failed))
        return self._with(failed=(*others, failed))

    def with_probe(self, rung: Rung, result: ProbeResult) -> Self:
        """Return the ladder with a probe that has passed."""
        return self._with(probed=ProbedRung(**rung_members(rung), result=result))

    def probe_of(self, rung: Rung) -> ProbeResult | None:
        """Return the probe of `rung` if it has passed."""
        if self.probed is None or _key(self.probed) != _key(rung):
            return None
        return self.probed.result

    def _with(self, **members: Any) -> Self:
        return self.model_copy(update=members)


def this_device(kind: str) -> Device:
    """Return the device of this process; `kind` is "cuda" or "cpu". A CPU has no memory of its own."""
    if kind == "cpu" or not torch.cuda.is_available():
        return Device(name="cpu", bytes=0)
    properties = torch.cuda.get_device_properties(0)
    return Device(name=properties.name, bytes=properties.total_memory)


def _key(rung: Any) -> tuple[int, bool, str, bool]:
    # An earlier trainer named no optimizer and had one only.
    optimizer = rung.optimizer or DEFAULT_OPTIMIZER
    return rung.micro_batch_size, rung.gradient_checkpointing, optimizer, rung.weights == "Dequantized"
