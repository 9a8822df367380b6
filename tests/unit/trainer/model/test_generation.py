from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from finetune_trainer.model.generation import end_token_ids


@pytest.mark.parametrize(
    ("generation", "config", "expected"),
    [
        ({"eos_token_id": [1, 2]}, {"eos_token_id": 2}, (1, 2)),
        ({"eos_token_id": 3}, {"eos_token_id": [2, 3]}, (3, 2)),
        ({"eos_token_id": None}, {}, ()),
        ([], {"eos_token_id": 5}, (5,)),
    ],
)
def test_end_tokens_in_both_files_count_once(
    tmp_path: Path, generation: Any, config: Any, expected: tuple[int, ...]
) -> None:
    (tmp_path / "generation_config.json").write_text(json.dumps(generation))
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert end_token_ids(tmp_path) == expected


def test_files_that_are_missing_or_damaged_name_no_token(tmp_path: Path) -> None:
    assert end_token_ids(tmp_path) == ()
    (tmp_path / "config.json").write_text("{")
    assert end_token_ids(tmp_path) == ()
