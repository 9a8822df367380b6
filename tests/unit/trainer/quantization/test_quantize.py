from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import pytest
import torch
from finetune_trainer.errors import Reason, StageError
from finetune_trainer.model.describe import quantization_config
from finetune_trainer.quantization.builder import QuantizedModel
from finetune_trainer.quantization.quantize import quantize_model
from finetune_trainer.sources.model import DirectoryModel
from finetune_trainer.telemetry.reporter import NullReporter
from finetune_trainer.workspace.layout import WorkspaceLayout
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from tests.support.tiny_models import write_tiny_model

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    """Make bitsandbytes compute its mean in the same order as quantize."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def run_quantize(model: Path, workspace: Path) -> tuple[QuantizedModel, WorkspaceLayout]:
    layout = WorkspaceLayout(workspace)
    return quantize_model(DirectoryModel(model), layout, NullReporter()), layout


def reference_tensors(model: Path, folder: Path) -> dict[str, torch.Tensor]:
    """Return the tensors that transformers and bitsandbytes write for the model."""
    loaded = AutoModelForCausalLM.from_pretrained(
        model, quantization_config=quantization_config(), dtype=torch.bfloat16, device_map="cpu"
    )
    loaded.save_pretrained(folder)
    return dict(load_file(folder / "model.safetensors"))


def assert_same_tensors(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert found[name].shape == tensor.shape, name
        assert torch.equal(found[name].view(torch.uint8), tensor.view(torch.uint8)), name


@pytest.mark.parametrize(
    ("family", "dtype", "tied"),
    [
        ("llama", torch.bfloat16, False),
        ("qwen3", torch.float16, True),
        ("mistral", torch.float32, False),
    ],
)
def test_every_tensor_equals_what_bitsandbytes_writes(
    tmp_path: Path, family: str, dtype: torch.dtype, *, tied: bool
) -> None:
    model = write_tiny_model(tmp_path / "base", family, dtype, tied=tied)
    result, layout = run_quantize(model, tmp_path / "workspace")
    found = load_file(layout.quantized_model / "model.safetensors")
    assert_same_tensors(found, reference_tensors(model, tmp_path / "reference"))
    assert result.quantized_modules == 14


def test_the_checkpoint_loads_normally_and_computes_like_the_reference(
    tmp_path: Path, tiny_model: Path
) -> None:
    _, layout = run_quantize(tiny_model, tmp_path / "workspace")
    ours = AutoModelForCausalLM.from_pretrained(layout.quantized_model, device_map="cpu")
    theirs = AutoModelForCausalLM.from_pretrained(
        tiny_model, quantization_config=quantization_config(), dtype=torch.bfloat16, device_map="cpu"
    )
    ids = torch.arange(20)[None]
    assert torch.equal(ours(ids).logits, theirs(ids).logits)


def test_shards_keep_their_names_and_get_an_index(tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path / "base")
    AutoModelForCausalLM.from_pretrained(model).save_pretrained(model, max_shard_size="100KB")
    (model / "model.safetensors").unlink()
    shards = sorted(path.name for path in model.glob("*.safetensors"))
    assert len(shards) > 1
    _, layout = run_quantize(model, tmp_path / "workspace")
    assert sorted(path.name for path in layout.quantized_model.glob("*.safetensors")) == shards
    found: dict[str, torch.Tensor] = {}
    for shard in shards:
        found.update(load_file(layout.quantized_model / shard))
    assert_same_tensors(found, reference_tensors(model, tmp_path / "reference"))
    AutoModelForCausalLM.from_pretrained(layout.quantized_model, device_map="cpu")


def test_base_keeps_the_small_files_byte_for_byte_and_a_layout_of_the_weights(
    tmp_path: Path, tiny_model: Path
) -> None:
    _, layout = run_quantize(tiny_model, tmp_path / "workspace")
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (layout.base / name).read_bytes() == (tiny_model / name).read_bytes()
    document = json.loads(layout.base_layout.read_text())
    names = [tensor["name"] for file in document["files"] for tensor in file["tensors"]]
    assert sorted(names) == sorted(load_file(tiny_model / "model.safetensors"))
    assert len(document["quantized"]) == 14


def test_a_second_run_changes_nothing_and_a_changed_model_does(tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path / "base")
    first, layout = run_quantize(model, tmp_path / "workspace")
    before = (layout.quantized_model / "model.safetensors").stat().st_mtime_ns
    second, _ = run_quantize(model, tmp_path / "workspace")
    assert second == first
    assert (layout.quantized_model / "model.safetensors").stat().st_mtime_ns == before
    tensors = load_file(model / "model.safetensors")
    tensors["model.norm.weight"] += 1
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    third, _ = run_quantize(model, tmp_path / "workspace")
    assert third.digest != first.digest


def test_a_run_that_is_killed_between_files_resumes_with_the_next_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = write_tiny_model(tmp_path / "base")
    AutoModelForCausalLM.from_pretrained(model).save_pretrained(model, max_shard_size="100KB")
    (model / "model.safetensors").unlink()
    whole, _ = run_quantize(model, tmp_path / "whole")

    class Killed(BaseException):
        pass

    fetched: list[str] = []
    fetch = DirectoryModel.fetch

    def dying_fetch(self: DirectoryModel, name: str, on_bytes: Callable[[int, int | None], None]) -> Path:
        fetched.append(name)
        if len(fetched) == 2:
            raise Killed
        return fetch(self, name, on_bytes)

    monkeypatch.setattr(DirectoryModel, "fetch", dying_fetch)
    with pytest.raises(Killed):
        run_quantize(model, tmp_path / "workspace")
    assert not (tmp_path / "workspace" / "model").exists()
    resumed, _ = run_quantize(model, tmp_path / "workspace")
    assert fetched.count(fetched[0]) == 1
    assert resumed.digest == whole.digest


def test_the_error_for_a_folder_without_a_model_names_the_missing_file(
    tmp_path: Path, tiny_model: Path
) -> None:
    folder = tmp_path / "folder"
    with pytest.raises(StageError) as caught:
        DirectoryModel(folder)
    assert caught.value.reason is Reason.MODEL_NOT_FOUND
    folder.mkdir()
    (folder / "README.md").write_text("hello")
    with pytest.raises(StageError, match=r"config\.json") as caught:
        DirectoryModel(folder)
    assert caught.value.reason is Reason.INVALID_MODEL
    shutil.copy(tiny_model / "config.json", folder)
    with pytest.raises(StageError, match=r"model\.safetensors") as caught:
        DirectoryModel(folder)
    assert caught.value.reason is Reason.INVALID_MODEL
    (folder / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(StageError, match="pickle") as caught:
        DirectoryModel(folder)
    assert caught.value.reason is Reason.UNSUPPORTED_MODEL


@pytest.mark.model
def test_the_real_model_equals_what_bitsandbytes_writes(tmp_path: Path, real_model: Path) -> None:
    """The model is SmolLM2-135M with 1322 tensors."""
    result, layout = run_quantize(real_model, tmp_path / "workspace")
    found = load_file(layout.quantized_model / "model.safetensors")
    assert_same_tensors(found, reference_tensors(real_model, tmp_path / "reference"))
    assert (result.quantized_modules, len(found)) == (210, 1322)
