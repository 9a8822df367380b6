"""What the result of a stage that succeeded means for the status."""

from __future__ import annotations

from finetune_operator.api.stages import Stage
from finetune_operator.contract.result import Result
from finetune_operator.status.draft import StatusDraft


def fold_success(draft: StatusDraft, result: Result) -> None:
    """Record what the current stage brought and go on to the next one, or end the job well."""
    if result.prepare is not None and draft.stage is Stage.PREPARE:
        draft.fold_prepare(result.prepare)
        train = result.completed.train if result.completed is not None else None
        merge = result.completed.merge if result.completed is not None else None
        if train is None:
            draft.begin_stage(Stage.TRAIN)
            return
        # Stages of this very spec hash that an earlier run finished are not run again.
        draft.fold_train(train)
        if merge is None:
            draft.begin_stage(Stage.MERGE)
            return
        draft.begin_stage(Stage.MERGE)
        draft.fold_merge(merge)
        draft.complete()
    elif result.train is not None and draft.stage is Stage.TRAIN:
        draft.fold_train(result.train)
        draft.begin_stage(Stage.MERGE)
    elif result.merge is not None and draft.stage is Stage.MERGE:
        draft.fold_merge(result.merge)
        draft.complete()
