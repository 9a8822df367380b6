from __future__ import annotations

from pathlib import Path

import pytest
from finetune_trainer.errors import Reason, StageError
from finetune_trainer.model.layout import read_base_layout
from finetune_trainer.workspace.layout import WorkspaceLayout, write_json_atomically

INTEGERS = {"name": "table", "dtype": "I64", "shape": [2]}
DOCUMENT = {
    "files": [
        {
            "name": "model.safetensors",
            "tensors": [
                {"name": "layer.weight", "dtype": "BF16", "shape": [3, 5]},
                {"name": "norm.weight", "dtype": "F32", "shape": [5]},
            ],
        }
    ],
    "quantized": ["layer"],
}


@pytest.fixture
def workspace(tmp_path: Path) -> WorkspaceLayout:
    layout = WorkspaceLayout(tmp_path)
    layout.quantized_model.mkdir()
    write_json_atomically(layout.base_layout, DOCUMENT)
    return layout


def test_sizes_follow_from_types_and_shapes(workspace: WorkspaceLayout) -> None:
    layout = read_base_layout(workspace)
    assert layout.bytes == 15 * 2 + 5 * 4
    assert layout.packed_bytes == 8, "15 weights take 7.5 bytes"
    assert layout.quantized == {"layer"}


def test_an_artifact_has_floats_in_bf16_or_the_types_of_the_base(workspace: WorkspaceLayout) -> None:
    document = {**DOCUMENT, "files": [*DOCUMENT["files"], {"name": "b", "tensors": [INTEGERS]}]}  # type: ignore[misc]  # JSON
    write_json_atomically(workspace.base_layout, document)
    layout = read_base_layout(workspace)
    assert layout.stored_as("AsBase") == layout
    converted = layout.stored_as("BFloat16")
    types = {tensor.name: tensor.dtype for file in converted.files for tensor in file.tensors}
    assert types == {"layer.weight": "BF16", "norm.weight": "BF16", "table": "I64"}
    assert converted.bytes == (15 + 5) * 2 + 2 * 8
    assert converted.parameters == layout.parameters == 22
    assert converted.quantized == layout.quantized


@pytest.mark.parametrize("document", [None, [], {"files": []}, {"files": [{"name": "a"}], "quantized": []}])
def test_a_missing_or_malformed_record_is_a_mismatch(workspace: WorkspaceLayout, document: object) -> None:
    workspace.base_layout.unlink()
    if document is not None:
        write_json_atomically(workspace.base_layout, document)
    with pytest.raises(StageError, match=r"base/layout\.json") as caught:
        read_base_layout(workspace)
    assert caught.value.reason is Reason.QUANTIZATION_MISMATCH


def test_a_missing_checkpoint_or_cache_names_the_remedy(
    workspace: WorkspaceLayout,
) -> None:
    workspace.quantized_model.rmdir()
    with pytest.raises(StageError, match="found none; run PREPARE again"):
        read_base_layout(workspace)
    workspace.quantized_model.symlink_to("/absent/cache")
    with pytest.raises(StageError, match=r"/absent/cache.*mount modelCache"):
        read_base_layout(workspace)


def test_layers_of_a_text_part_may_be_rows_of_a_larger_tensor(workspace: WorkspaceLayout) -> None:
    tensors = [
        {"name": "lm.x.weight", "dtype": "BF16", "shape": [6, 4]},
        {"name": "lm.y.weight", "dtype": "BF16", "shape": [2, 4]},
        {"name": "tower.x.weight", "dtype": "BF16", "shape": [9, 4]},
    ]
    document = {
        "files": [{"name": "model.safetensors", "tensors": tensors}],
        "quantized": ["x", "y"],
        "places": {"up": ["x.weight", 0, 2], "gate": ["x.weight", 2, 6]},
        "textNames": {"lm.x.weight": "x.weight", "lm.y.weight": "y.weight"},
    }
    write_json_atomically(workspace.base_layout, document)
    layout = read_base_layout(workspace)
    assert dict(layout.weights()) == {"up": (2, 4), "gate": (4, 4), "y": (2, 4)}
    assert layout.adaptable == {"up", "gate", "y"}
    assert layout.packed_bytes == (6 + 2) * 4 // 2
