"""Applies the result of a successful stage to the status."""

from __future__ import annotations

from finetune_operator.api.stages import Stage
from finetune_operator.contract.result import Result
from finetune_operator.status.draft import StatusDraft


def apply_success(draft: StatusDraft, result: Result) -> StatusDraft:
    """Record the current stage's result, then begin the next stage or complete the job."""
    if result.prepare is not None and draft.stage is Stage.PREPARE:
        draft = draft.apply_prepare_result(result.prepare)
        train = result.completed.train if result.completed is not None else None
        merge = result.completed.merge if result.completed is not None else None
        if train is None:
            return draft.begin_stage(Stage.TRAIN)
        # An earlier run with the same spec hash finished these stages. They are not run again.
        draft = draft.apply_train_result(train).begin_stage(Stage.MERGE)
        return draft if merge is None else draft.apply_merge_result(merge).complete()
    if result.train is not None and draft.stage is Stage.TRAIN:
        return draft.apply_train_result(result.train).begin_stage(Stage.MERGE)
    if result.merge is not None and draft.stage is Stage.MERGE:
        return draft.apply_merge_result(result.merge).complete()
    return draft
