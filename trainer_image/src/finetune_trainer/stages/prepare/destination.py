"""Tries the output destination before a GPU is requested. After TRAIN only MERGE tries it, because MERGE can wait."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from finetune_trainer.errors import Reason, StageError
from finetune_trainer.workspace.completed import published_results, remote_results, trained_result
from finetune_trainer.workspace.destination import is_transient, require_space, try_destination

if TYPE_CHECKING:
    from finetune_trainer.contract.result import PublishedResult
    from finetune_trainer.contract.run_spec import RunSpec
    from finetune_trainer.workspace.layout import WorkspaceLayout

_log = logging.getLogger(__name__)


def check_destination(run: RunSpec, workspace: WorkspaceLayout) -> PublishedResult | None:
    """Return what the destination proves to be published for this spec; otherwise prove that it can be written.

    Raises StageError(DestinationUnwritable) if it cannot be written or is taken, and InternalError, which is tried
    again, if its storage does not answer. Once TRAIN has finished in the workspace, it raises nothing.
    """
    if run.output.destinations:
        # The step before this one has tried them, with their credentials. What MERGE publishes to the workspace is copied
        # by another step, so it proves nothing about them.
        return remote_results(run, workspace)
    try:
        published = published_results(run)
        if published is None and not _is_trained(run, workspace):
            try_destination(run.output.destination.path, run.spec_hash)
    except StageError as error:
        if _is_trained(run, workspace):
            _log.warning("MERGE will try the destination again: %s", error.message)
            return None
        if is_transient(error):
            raise StageError(Reason.INTERNAL_ERROR, error.message) from error
        raise
    return published


def check_space(run: RunSpec, workspace: WorkspaceLayout, needed: int) -> None:
    """Raise StageError unless `needed` bytes of artifacts fit, or TRAIN has finished in the workspace.

    The reason is DestinationUnwritable, or WorkspaceFull for artifacts that are staged in the workspace before they are
    copied to several destinations.
    """
    if _is_trained(run, workspace):
        return
    try:
        require_space(run.output.destination.path, needed)
    except StageError as error:
        if not run.output.destinations:
            raise
        message = f"{error.message}. With output.destinations the artifacts are staged in the workspace"
        raise StageError(Reason.WORKSPACE_FULL, message) from error


def _is_trained(run: RunSpec, workspace: WorkspaceLayout) -> bool:
    return trained_result(run, workspace) is not None
