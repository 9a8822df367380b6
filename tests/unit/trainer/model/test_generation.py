from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from finetune_trainer.model.generation import end_token_ids, stop_token_ids, with_stops


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


@pytest.mark.parametrize(
    ("generation", "config", "expected"),
    [
        ({"eos_token_id": 1}, {"eos_token_id": 2}, (1,)),
        ({"eos_token_id": [1, 3]}, {}, (1, 3)),
        ({"temperature": 0.5}, {"eos_token_id": 2}, ()),
        ({"eos_token_id": True}, {"eos_token_id": 2}, ()),
        (None, {"eos_token_id": 2}, (2,)),
        (None, {}, ()),
    ],
)
def test_a_generation_config_alone_says_where_a_server_stops(
    tmp_path: Path, generation: Any, config: Any, expected: tuple[int, ...]
) -> None:
    """Without that file, servers take the tokens of config.json."""
    if generation is not None:
        (tmp_path / "generation_config.json").write_text(json.dumps(generation))
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert stop_token_ids(tmp_path) == expected


@pytest.mark.parametrize(
    ("generation", "config", "learned", "expected"),
    [
        ({"eos_token_id": 1}, {}, [1], None),
        ({"eos_token_id": [1, 2]}, {}, [2], None),
        ({"eos_token_id": 1, "top_p": 0.5}, {}, [2], {"eos_token_id": [1, 2], "top_p": 0.5}),
        ({"eos_token_id": [1, 3]}, {"eos_token_id": 2}, [2, 3], {"eos_token_id": [1, 3, 2]}),
        ({}, {"eos_token_id": 2}, [2], {"eos_token_id": [2]}),
        (None, {"eos_token_id": 2}, [2], None),
        (
            None,
            {"eos_token_id": 0, "bos_token_id": 0, "pad_token_id": None},
            [2],
            {"bos_token_id": 0, "eos_token_id": [0, 2]},
        ),
        ({"eos_token_id": 1}, {}, [], None),
    ],
)
def test_only_a_missing_end_is_added_behind_the_bases_own(
    generation: Any, config: Any, learned: list[int], expected: Any
) -> None:
    assert with_stops(generation, config, learned) == expected
