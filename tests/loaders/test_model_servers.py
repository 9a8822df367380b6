"""vLLM on a CPU and llama.cpp answer with the artifacts like the trained model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from finetune_trainer.stages.merge.stage import merge
from finetune_trainer.stages.prepare.stage import prepare
from finetune_trainer.stages.train.stage import train
from finetune_trainer.telemetry.reporter import NullReporter
from finetune_trainer.workspace.layout import WorkspaceLayout
from gguf.quants import dequantize
from safetensors.torch import load_file
from transformers import AutoTokenizer

from tests.support.airports import airports_run, load_folder, load_trained
from tests.support.e2e import quickstart
from tests.support.loaders.agreement import Answer, differences, equal_answers
from tests.support.loaders.serve_models import greedy
from tests.support.repository import ROOT

pytestmark = [pytest.mark.model, pytest.mark.full]

SERVERS = ROOT / ".cache" / "servers"
SUPPORT = ROOT / "tests" / "support" / "loaders"
CONVERTER = SERVERS / "llama.cpp"
NEW_TOKENS = 72
PROMPTS = 64
_QUICKSTART = {"maximumSteps": 45, "learningRate": 1e-3, "effectiveBatchSize": 4}


@dataclass(frozen=True)
class Artifacts:
    """A trained and merged quickstart, and what the trained model answers."""

    merged: Path
    adapter: Path
    base_as_trained: Path
    conversations: list[list[dict[str, str]]]
    prompts: list[list[int]]
    texts: list[str]
    trained: list[Answer]


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> Artifacts:
    root = tmp_path_factory.mktemp("servers")
    kinds = {"artifacts": ["Adapter", "Merged", "BaseAsTrained"]}
    run = airports_run(root / "workspace", root / "output", _QUICKSTART, output=kinds)
    prepare(run, NullReporter())
    train(run, NullReporter())
    merge(run, NullReporter())
    workspace = WorkspaceLayout(root / "workspace")
    lines = quickstart.HELD_OUT.read_text("utf-8").splitlines()[:PROMPTS]
    conversations = [json.loads(line)["messages"][:-1] for line in lines]
    tokenizer = AutoTokenizer.from_pretrained(root / "output" / "merged")
    texts = [
        str(tokenizer.apply_chat_template(conversation, tokenize=False, add_generation_prompt=True))
        for conversation in conversations
    ]
    prompts = tokenizer(texts, add_special_tokens=False)["input_ids"]
    trained = greedy(
        load_trained(workspace),
        prompts,
        NEW_TOKENS,
        tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return Artifacts(
        root / "output" / "merged",
        root / "output" / "adapter",
        root / "output" / "base-as-trained",
        conversations,
        prompts,
        texts,
        [Answer(*one) for one in trained],
    )


@torch.inference_mode()
def _noise(artifacts: Artifacts, dtype: torch.dtype) -> float:
    """Return the largest change of a lead between the trained model and the merged one, in transformers in `dtype`."""
    model = load_folder(artifacts.merged).to(dtype)
    largest = 0.0
    # Most CPUs multiply bf16 matrices ten times slower than float32 ones.
    rows = PROMPTS if dtype == torch.float32 else 8
    for prompt, answer in list(zip(artifacts.prompts, artifacts.trained, strict=True))[:rows]:
        ids = torch.tensor([[*prompt, *answer.tokens]])
        logits = model(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 : -1].float()
        places = torch.arange(len(answer.tokens))
        leads = logits[places, torch.tensor(answer.tokens)] - logits[places, torch.tensor(answer.rivals)]
        largest = max(largest, float((leads - torch.tensor(answer.leads)).abs().max()))
    return largest


def _ask(python: Path, script: str, output: Path, **request: Any) -> dict[str, Any]:
    """Run one of the scripts beside `serve_models` in a server's environment; return what it found."""
    if not python.is_file():
        pytest.fail(f"the server's environment must be at {python.parents[1]}: run `make model-servers`")
    subprocess.run(
        [str(python), str(SUPPORT / script)],
        input=json.dumps({**request, "output": str(output)}),
        text=True,
        check=True,
        timeout=1200,
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
    )
    found: dict[str, Any] = json.loads(output.read_text("utf-8"))
    return found


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [("merged", "bfloat16"), ("merged", "float32"), ("adapter", "bfloat16")],
    ids=["merged", "merged-in-float32", "adapter-on-the-base-as-trained"],
)
def test_vllm_answers_like_the_trained_model(
    artifacts: Artifacts, tmp_path: Path, kind: str, dtype: str
) -> None:
    """The merged model is served as it is, and the adapter on the base as trained, by the folders' own templates."""
    merged = kind == "merged"
    found = _ask(
        SERVERS / "vllm" / "bin" / "python",
        "ask_vllm.py",
        tmp_path / "answers.json",
        model=str(artifacts.merged if merged else artifacts.base_as_trained),
        adapter=None if merged else str(artifacts.adapter),
        dtype=dtype,
        conversations=artifacts.conversations,
        new_tokens=NEW_TOKENS,
    )
    noise = _noise(artifacts, getattr(torch, dtype))
    print(
        f"vLLM, {kind}, {dtype}: {equal_answers(artifacts.trained, found['answers'])} of {PROMPTS}, noise {noise:.4f}"
    )
    assert found["prompts"] == artifacts.prompts
    assert differences(artifacts.trained, found["answers"], 2 * noise) == []
    assert equal_answers(artifacts.trained, found["answers"]) >= PROMPTS * 3 // 4


def _convert(folder: Path, target: Path, kind: str) -> None:
    if not (CONVERTER / "convert_hf_to_gguf.py").is_file():
        pytest.fail(f"llama.cpp's converter must be in {CONVERTER}: run `make model-servers`")
    subprocess.run(
        [
            sys.executable, str(CONVERTER / "convert_hf_to_gguf.py"), str(folder),
            "--outfile", str(target), "--outtype", kind,
        ],
        check=True,
        timeout=600,
        env={**os.environ, "PYTHONPATH": str(CONVERTER / "gguf-py")},
    )  # fmt: skip


def _as_in_gguf(name: str, weight: np.ndarray[Any, Any], heads: dict[str, int]) -> np.ndarray[Any, Any]:
    """Order the rows of a query or key matrix as llama.cpp does: halves of each head's rotation become pairs."""
    count = next((number for part, number in heads.items() if name.endswith(f"{part}_proj.weight")), None)
    if count is None:
        return weight
    halves = weight.reshape(count, 2, weight.shape[0] // count // 2, *weight.shape[1:])
    return halves.swapaxes(1, 2).reshape(weight.shape)


def test_a_gguf_of_the_merged_model_has_its_tensors(artifacts: Artifacts, tmp_path: Path) -> None:
    """The converter accepts the folder, and changes no value."""
    _convert(artifacts.merged, tmp_path / "model.gguf", "auto")
    config = json.loads((artifacts.merged / "config.json").read_text("utf-8"))
    heads = {"q": config["num_attention_heads"], "k": config["num_key_value_heads"]}
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config["num_hidden_layers"])
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / "model.gguf").tensors}
    weights = load_file(artifacts.merged / "model.safetensors")
    assert len(tensors) == len(weights)
    for name, weight in weights.items():
        found = tensors[str(names.get_name(name, try_suffixes=(".weight",)))]
        expected = _as_in_gguf(name, weight.float().numpy(), heads)
        values = dequantize(found.data, found.tensor_type).reshape(expected.shape)
        assert np.array_equal(values, expected), name


def test_llama_cpp_answers_like_the_trained_model(artifacts: Artifacts, tmp_path: Path) -> None:
    """The file has float32 weights, because llama.cpp rounds activations to the type of the weights."""
    _convert(artifacts.merged, tmp_path / "model.gguf", "f32")
    found = _ask(
        SERVERS / "llama-cpp" / "bin" / "python",
        "ask_llama_cpp.py",
        tmp_path / "answers.json",
        model=str(tmp_path / "model.gguf"),
        prompts=artifacts.prompts,
        texts=artifacts.texts,
        new_tokens=NEW_TOKENS,
        threads=os.cpu_count(),
    )
    noise = _noise(artifacts, torch.float32)
    print(f"llama.cpp: {equal_answers(artifacts.trained, found['answers'])} of {PROMPTS}, noise {noise:.4f}")
    assert found["tokens"] == artifacts.prompts
    assert found["template"] == (artifacts.merged / "chat_template.jinja").read_text("utf-8")
    assert differences(artifacts.trained, found["answers"], 2 * noise) == []
    assert equal_answers(artifacts.trained, found["answers"]) >= PROMPTS * 3 // 4
