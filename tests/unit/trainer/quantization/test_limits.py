"""Quantization has limits for memory and disk space, and never changes the user's files."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from finetune_trainer.model.safetensors_file import PlannedTensor, TensorWriter
from finetune_trainer.quantization.quantize import quantize_model
from finetune_trainer.sources.hub_model import HubModel
from finetune_trainer.sources.model import DirectoryModel
from finetune_trainer.telemetry.reporter import NullReporter
from finetune_trainer.workspace.digests import folder_digests
from finetune_trainer.workspace.layout import WorkspaceLayout
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig

from tests.support.repository import ROOT
from tests.support.servers.model_hub import REPOSITORY, ModelHub, serving
from tests.support.tiny_models import write_tiny_model

if TYPE_CHECKING:
    from collections.abc import Iterator

GIB = 1024**3


def write_sparse_model(folder: Path, config: Any, embedding_type: str) -> int:
    """Write a sparse checkpoint of zeros that takes no space on disk, and return its nominal bytes."""
    config.save_pretrained(folder)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder), dtype=torch.bfloat16)
    tensors = [
        PlannedTensor(name, embedding_type if "embed" in name else "BF16", tuple(tensor.shape))
        for name, tensor in model.state_dict().items()
        if name not in model.all_tied_weights_keys
    ]
    TensorWriter(folder / "model.safetensors", tensors, []).finish()
    return sum(tensor.bytes for tensor in tensors)


@pytest.fixture
def large_model(tmp_path: Path) -> Iterator[Path]:
    """Return a model with an embedding of 4 GB in float32 (2 GB in bf16) and linear layers of 128 MB each."""
    folder = tmp_path / "large"
    config = LlamaConfig(
        vocab_size=262_144,
        hidden_size=4096,
        intermediate_size=16_384,
        num_hidden_layers=1,
        num_attention_heads=32,
        tie_word_embeddings=True,
    )
    assert write_sparse_model(folder, config, "F32") > 4.4 * GIB
    yield folder
    for path in tmp_path.rglob("*.safetensors"):
        path.unlink()


@pytest.mark.slow
def test_an_embedding_of_two_gigabytes_does_not_fill_the_memory(large_model: Path, tmp_path: Path) -> None:
    """At most 1.5 GB of anonymous memory are used, with libraries, and the files are not mapped."""
    script = ROOT / "tests" / "support" / "processes" / "measured_quantization.py"
    paths = os.pathsep.join(str(ROOT / part) for part in ("trainer_image/src", "."))
    process = subprocess.run(
        [sys.executable, str(script), str(large_model), str(tmp_path / "workspace")],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": paths},
    )
    measured = json.loads(process.stdout)
    assert measured["bytes"] > 2.1 * GIB
    assert measured["peak"]["RssAnon"] <= 1.5e9
    assert measured["peak"]["RssAnon"] - measured["before"]["RssAnon"] <= 300e6
    assert measured["peak"]["RssFile"] - measured["before"]["RssFile"] <= 300e6


def bytes_in(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_a_downloaded_model_takes_the_space_of_its_result_and_one_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = write_tiny_model(tmp_path / "base")
    config = LlamaConfig(
        vocab_size=512,
        hidden_size=256,
        intermediate_size=1024,
        num_hidden_layers=8,
        num_attention_heads=4,
        bos_token_id=1,
        eos_token_id=2,
    )
    (model / "model.safetensors").unlink()
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(
        model, max_shard_size="2MB"
    )
    sizes = [path.stat().st_size for path in model.glob("*.safetensors")]
    assert len(sizes) > 4
    workspace = tmp_path / "workspace"
    seen: list[int] = []

    class Measuring(NullReporter):
        def update(self, *_arguments: Any, **_numbers: Any) -> None:
            seen.append(bytes_in(workspace))

    finish = TensorWriter.finish

    def measured_finish(self: TensorWriter) -> None:
        finish(self)
        seen.append(bytes_in(workspace))  # both the file and its source exist

    monkeypatch.setattr(TensorWriter, "finish", measured_finish)
    with serving(ModelHub(model)) as endpoint:
        monkeypatch.setenv("HF_ENDPOINT", endpoint)
        source = HubModel(REPOSITORY, "main", None, workspace / "download")
        result = quantize_model(source, WorkspaceLayout(workspace), Measuring())
    assert list((workspace / "download").rglob("*.safetensors")) == []
    # Config, tokenizer and layout exist in the download, in base/, in model/, and in the inspected folder.
    small = (
        5 * sum(path.stat().st_size for path in model.iterdir() if path.suffix != ".safetensors") + 100_000
    )
    assert max(seen) <= result.bytes + max(sizes) + small
    assert max(seen) < sum(sizes) // 2


def test_a_folder_of_the_user_is_never_changed(tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path / "base")
    for path in model.iterdir():
        path.chmod(0o444)
    model.chmod(0o555)
    before = folder_digests(model), {path.name: path.stat().st_mtime_ns for path in model.iterdir()}
    for cache in (None, tmp_path / "cache"):
        layout = WorkspaceLayout(tmp_path / f"workspace-{cache is None}")
        quantize_model(DirectoryModel(model), layout, NullReporter(), cache)
    assert (folder_digests(model), {path.name: path.stat().st_mtime_ns for path in model.iterdir()}) == before
    model.chmod(0o755)
