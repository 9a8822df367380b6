"""The end of a stage, and its result."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from finetune_trainer.contract.bounds import MAXIMUM_LOG_LINE, MAXIMUM_LOG_LINES, MAXIMUM_MESSAGE, shorten
from finetune_trainer.contract.exit_codes import ExitCode, exit_code
from finetune_trainer.contract.result import Result, StageResult
from finetune_trainer.contract.run_spec import CONTRACT_VERSION
from finetune_trainer.contract.timestamps import rfc3339

if TYPE_CHECKING:
    from datetime import datetime

    from finetune_trainer.contract.identity import Identity
    from finetune_trainer.errors import Reason


@dataclass(frozen=True)
class Outcome:
    """The end of a stage: a success with `members`, or a failure with its reason and message.

    `rank` is the one of several ranks that failed first, as in `StageError`.
    """

    members: StageResult
    reason: Reason | None = None
    message: str = ""
    rank: int | None = None

    @classmethod
    def failure(cls, reason: Reason, message: str, rank: int | None = None) -> Outcome:
        """Return the outcome of a stage that did not succeed."""
        return cls(StageResult(), reason, message, rank)

    @property
    def name(self) -> Literal["Succeeded", "Failed", "Interrupted"]:
        """Name of the outcome in the contract."""
        if self.reason is None:
            return "Succeeded"
        return "Interrupted" if self.code is ExitCode.INTERRUPTED else "Failed"

    @property
    def code(self) -> ExitCode:
        """Exit code of the process."""
        return exit_code(self.reason)


def make_result(
    identity: Identity,
    outcome: Outcome,
    *,
    started: datetime,
    completed: datetime,
    peak_memory_bytes: int | None,
    log_tail: list[str],
) -> Result:
    """Compose the result; only a failure carries `log_tail`."""
    failure: dict[str, Any] = {}
    if outcome.reason is not None:
        failure = {
            "reason": outcome.reason.value,
            "message": shorten(outcome.message, MAXIMUM_MESSAGE),
            "log_tail": tuple(shorten(line, MAXIMUM_LOG_LINE) for line in log_tail[-MAXIMUM_LOG_LINES:]),
            **({} if outcome.rank is None else {"rank": outcome.rank}),
        }
    members = outcome.members
    return Result(
        version=CONTRACT_VERSION,
        uid=identity.uid,
        stage=identity.stage,
        attempt=identity.attempt,
        outcome=outcome.name,
        start_time=rfc3339(started),
        completion_time=rfc3339(completed),
        peak_memory_bytes=peak_memory_bytes,
        **{name: getattr(members, name) for name in members.model_fields_set},
        **failure,
    )
