from __future__ import annotations

from pathlib import Path

import pytest
from finetune_trainer.model.merge_target import keeps_original, merges_onto_original

from tests.support.workspaces import run_spec


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, False),
        ({"merge_onto": "TrainedWeights"}, False),
        ({"merge_onto": "OriginalWeights"}, True),
        ({"merge_onto": "OriginalWeights", "artifacts": ("Adapter",)}, False),
    ],
)
def test_original_weights_are_needed_only_for_a_merge_into_them(
    tmp_path: Path, changes: dict[str, object], *, expected: bool
) -> None:
    run = run_spec(tmp_path, tmp_path)
    changed = run.model_copy(update={"output": run.output.model_copy(update=changes)})
    assert merges_onto_original(changed) is expected


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, False),
        ({"merge_onto": "OriginalWeights"}, True),
        ({"merge_onto": "OriginalWeights", "artifacts": ("Adapter",)}, False),
        ({"artifacts": ("Adapter", "BaseAsTrained")}, True),
    ],
)
def test_the_base_as_trained_needs_the_original_weights_for_a_comparison(
    tmp_path: Path, changes: dict[str, object], *, expected: bool
) -> None:
    run = run_spec(tmp_path, tmp_path)
    changed = run.model_copy(update={"output": run.output.model_copy(update=changes)})
    assert keeps_original(changed) is expected
