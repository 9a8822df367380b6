"""Runs one stage and turns whatever happens into an outcome with a reason."""

from __future__ import annotations

import importlib
import logging
import resource
import signal
import sys
from typing import TYPE_CHECKING, Any, Protocol, cast

from finetune_trainer.contract.result import Outcome, as_contract
from finetune_trainer.errors import Reason, StageError
from finetune_trainer.workspace.disk_space import is_full, says_disk_full

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import FrameType

    from finetune_trainer.contract.run_spec import RunSpec
    from finetune_trainer.telemetry.redaction import Redactor
    from finetune_trainer.telemetry.reporter import Reporter

_log = logging.getLogger(__name__)

STAGES: Mapping[str, str] = {"prepare": "Prepare", "train": "Train", "merge": "Merge"}
_FUNCTIONS = {
    "prepare": ("finetune_trainer.stages.prepare.stage", "prepare"),
    "train": ("finetune_trainer.stages.train.stage", "train"),
    "merge": ("finetune_trainer.stages.merge.stage", "merge"),
}


class StageFunction(Protocol):
    """Does a stage's work and returns its part of the result."""

    def __call__(self, run: RunSpec, progress: Reporter) -> dict[str, Any]:
        """Raise StageError for a failure that has a reason."""


class Terminated(BaseException):
    """The process was asked to stop. Not an Exception, so that no library's handler swallows it."""


def raise_on_termination() -> None:
    """Turn SIGTERM and SIGINT into Terminated. TRAIN replaces the handler while it can save a checkpoint."""

    def handle(number: int, _frame: FrameType | None) -> None:
        raise Terminated(signal.Signals(number).name)

    signal.signal(signal.SIGTERM, handle)
    signal.signal(signal.SIGINT, handle)


def load_stage(command: str) -> StageFunction:
    """Import a stage's function. Late, because it brings in torch, which takes seconds."""
    module, function = _FUNCTIONS[command]
    return cast("StageFunction", getattr(importlib.import_module(module), function))


def run_stage(command: str, run: RunSpec, progress: Reporter, redact: Redactor) -> Outcome:
    """Run the stage `command`; never raises but for errors of the interpreter itself.

    A failure without a name of its own becomes InternalError, its traceback goes to the log.
    """
    try:
        members = load_stage(command)(run, progress)
        # PREPARE returns result members by name; the others return the one member named after them.
        named = members if command == "prepare" else {command: members}
        return Outcome(as_contract(named, run.version))
    except StageError as error:
        reason, message = error.reason, error.message
        _log.error("%s: %s", reason, message)
    except Terminated as signal_name:
        reason, message = (
            Reason.INTERRUPTED,
            f"the stage was stopped by {signal_name}; running it again goes on",
        )
        _log.warning("%s", message)
    except (Exception, SystemExit) as error:  # noqa: BLE001 -- the process's last barrier: becomes InternalError
        if says_disk_full(error) or (isinstance(error, RuntimeError) and is_full(run.workspace.path)):
            reason = Reason.WORKSPACE_FULL
            message = f"the workspace must have free space, found none ({error}); raise workspace.size"
            _log.error("%s: %s", reason, message)
        else:
            reason, message = _internal(error)
    return Outcome({}, reason, redact(message))


def _internal(error: BaseException) -> tuple[Reason, str]:
    _log.critical("unexpected failure", exc_info=error)
    return Reason.INTERNAL_ERROR, f"{type(error).__name__}: {error}"


def peak_memory_bytes() -> int:
    """Largest CUDA memory allocated if this process used a CUDA device, else the largest resident set."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        return int(torch.cuda.max_memory_allocated())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
