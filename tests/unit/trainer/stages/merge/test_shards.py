from __future__ import annotations

import json
from pathlib import Path

import pytest
from finetune_trainer.model.layout import BaseLayout, WeightFile
from finetune_trainer.model.safetensors_file import PlannedTensor
from finetune_trainer.stages.merge.shards import INDEX, LARGEST_FILE, SINGLE, split_files, write_index


def layout(*files: tuple[str, list[int]]) -> BaseLayout:
    """Return a layout; each file has tensors of so many bytes."""
    numbers = iter("abcdefgh")
    return BaseLayout(
        tuple(
            WeightFile(name, tuple(PlannedTensor(next(numbers), "BF16", (size // 2,)) for size in sizes))
            for name, sizes in files
        ),
        frozenset(),
    )


def sizes(found: BaseLayout) -> list[list[int]]:
    return [[tensor.bytes for tensor in file.tensors] for file in found.files]


def test_files_that_are_small_enough_stay_as_they_are() -> None:
    base = layout(("one.safetensors", [4, 6]), ("two.safetensors", [10]))
    assert split_files(base, 10) is base
    assert split_files(base) is base
    assert LARGEST_FILE == 5 * 10**9


def test_a_larger_file_is_split_and_all_files_get_numbered_names() -> None:
    found = split_files(layout((SINGLE, [4, 6, 2]), ("two.safetensors", [12, 2])), 10)
    assert sizes(found) == [[4, 6], [2], [12], [2]], "a tensor that is too large has its own file"
    assert [file.name for file in found.files] == [
        f"model-0000{number}-of-00004.safetensors" for number in (1, 2, 3, 4)
    ]


@pytest.mark.parametrize(
    ("index", "name", "written"),
    [
        (None, SINGLE, False),
        (None, "weights.safetensors", True),
        ({"metadata": {"total_size": 4}, "weight_map": {"a": SINGLE}}, SINGLE, False),
        ({"metadata": {"total_size": 4, "more": 1}, "weight_map": {"a": "x.safetensors"}}, SINGLE, True),
        ("{", "weights.safetensors", True),
    ],
)
def test_an_index_is_written_only_if_that_of_the_base_is_wrong(
    tmp_path: Path, index: object, name: str, *, written: bool
) -> None:
    path = tmp_path / INDEX
    if index is not None:
        path.write_text(index if isinstance(index, str) else json.dumps(index))
    before = path.read_bytes() if path.exists() else None
    write_index(tmp_path, layout((name, [4])), resized=False)
    if not written:
        assert (path.read_bytes() if path.exists() else None) == before
        return
    document = json.loads(path.read_text())
    kept = {"more": 1} if isinstance(index, dict) else {}
    assert document == {"metadata": {**kept, "total_size": 4}, "weight_map": {"a": name}}


def test_an_index_tells_the_size_of_other_types(tmp_path: Path) -> None:
    path = tmp_path / INDEX
    path.write_text(json.dumps({"metadata": {"total_size": 8}, "weight_map": {"a": SINGLE}}))
    write_index(tmp_path, layout((SINGLE, [4])), resized=True)
    assert json.loads(path.read_text())["metadata"] == {"total_size": 4}
