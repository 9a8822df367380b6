"""PREPARE has the same result after ten kills as in an undisturbed run."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from finetune_trainer.quantization.original import read_original
from finetune_trainer.workspace.digests import file_digest, folder_digests
from transformers import AutoModelForCausalLM, LlamaConfig

from tests.support.repository import ROOT
from tests.support.servers.model_hub import REPOSITORY, ModelHub, serving
from tests.support.tiny_models import conversation_rows, tiny_tokenizer, write_rows

if TYPE_CHECKING:
    from collections.abc import Iterator

_KILLED = -9


@pytest.fixture(scope="module")
def hub_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a model of 25 MB in a dozen weight files."""
    folder = tmp_path_factory.mktemp("kills") / "model"
    tokenizer = tiny_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=384,
        intermediate_size=1536,
        num_hidden_layers=6,
        num_attention_heads=6,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(5)
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(
        folder, max_shard_size="2MB"
    )
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def endpoint(hub_model: Path) -> Iterator[str]:
    with serving(ModelHub(hub_model, bytes_per_second=8e6)) as address:
        yield address


def run_prepare(
    document: dict[str, Any], workspace: Path, endpoint: str, moments: list[tuple[str, float]], **changes: Any
) -> tuple[list[list[Any]], dict[str, Any], dict[str, str]]:
    """Return the end of each process, the last result, and the digests of the files that TRAIN and MERGE read."""
    workspace.mkdir()
    source = {"kind": "HuggingFace", "repository": REPOSITORY, "revision": "main"}
    run = {**document, "version": "1.1", "workspace": {"path": str(workspace)}, **changes}
    run["model"] = {**document["model"], "source": source}
    run_file = workspace.with_suffix(".json")
    run_file.write_text(json.dumps(run))
    result = workspace.with_suffix(".result")
    result.touch()
    script = ROOT / "tests" / "support" / "processes" / "killed_prepare.py"
    paths = os.pathsep.join(str(ROOT / part) for part in ("trainer_image/src", "."))
    errors = workspace.with_suffix(".err")
    with errors.open("wb") as stderr:
        process = subprocess.run(
            [sys.executable, str(script), str(run_file), str(result), json.dumps(moments)],
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            check=False,
            env={
                **os.environ,
                "PYTHONPATH": paths,
                "HF_ENDPOINT": endpoint,
                "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            },
        )
    assert process.returncode == 0, errors.read_text()[-2000:]
    folders = ("base", "model", "dataset")
    files = {
        f"{folder}/{name}": digest
        for folder in folders
        for name, digest in folder_digests(workspace / folder).items()
        if not name.startswith(".")
    }
    ends = json.loads(process.stdout.splitlines()[-1])
    assert ends[-1] == [0, "Finished"], errors.read_text()[-2000:]
    return ends, json.loads(result.read_text())["prepare"], files


def moments(seed: int) -> list[tuple[str, float]]:
    """Return ten moments across the stage, in order, because finished activities are not repeated."""
    chosen = random.Random(seed)  # noqa: S311 -- reproducible, not secret
    spread = [("FetchingDataset", 0.1), *[("ProvingRows", 0.4)] * 4, *[("FetchingModel", 0.4)] * 5]
    return [(activity, chosen.uniform(0, longest)) for activity, longest in spread]


@pytest.mark.slow
def test_ten_kills_do_not_change_any_byte(
    run_document: dict[str, Any], tmp_path: Path, endpoint: str, hub_model: Path
) -> None:
    """Compare dataset, digests and every file, with the model in the workspace and, in a second job, in a cache.

    The second job also keeps the original weights.
    """
    dataset = write_rows(tmp_path / "many.jsonl", conversation_rows(4_000))
    document = {
        **run_document,
        "dataset": {**run_document["dataset"], "source": {"kind": "File", "path": str(dataset)}},
    }
    _, undisturbed, expected = run_prepare(document, tmp_path / "undisturbed", endpoint, [])
    cache = tmp_path / "cache"
    output = {**run_document["output"], "mergeOnto": "OriginalWeights"}
    for seed, changes in ((7, {}), (8, {"modelCache": {"path": str(cache)}, "output": output})):
        ends, result, files = run_prepare(
            document, tmp_path / f"killed-{seed}", endpoint, moments(seed), **changes
        )
        kills = [activity for code, activity in ends if code == _KILLED]
        assert len(kills) == 10, ends
        assert set(kills) >= {"ProvingRows", "FetchingModel"}, ends
        assert result == undisturbed
        assert files == expected
    assert [path for path in cache.iterdir() if path.name.startswith(".")] == []
    original = tmp_path / "killed-8" / "original"
    assert read_original(original, undisturbed["model"]["digest"]).startswith("sha256:")
    kept = {name: digest for name, digest in folder_digests(original).items() if name != "manifest.json"}
    assert kept == {path.name: file_digest(path) for path in hub_model.glob("*.safetensors")}
