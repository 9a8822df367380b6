"""With a Mistral tokenizer, a system prompt and two turns, training covers only the two answers and their end tokens."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from devcluster import product
from devcluster.kubectl import Kubectl
from devcluster.provider import ProvidedCluster

from tests.support.chat_templates.real_tokenizers import RealTokenizers
from tests.support.chat_templates.templates import cases
from tests.support.e2e import jobs

pytestmark = pytest.mark.cluster

IGNORED = -100
END = "</s>"
ROWS = 24


def conversation(number: int) -> dict[str, Any]:
    """Return a system prompt and two turns in which no two messages share a number."""
    first, second = 1000 + number, 2000 + number
    return {
        "messages": [
            {"role": "system", "content": f"You are clerk {3000 + number}. Answer with the number alone."},
            {"role": "user", "content": f"Which number comes after {first - 1}?"},
            {"role": "assistant", "content": f"It is {first}."},
            {"role": "user", "content": f"And which one comes after {second - 1}?"},
            {"role": "assistant", "content": f"That one is {second}."},
        ]
    }


CONVERSATIONS = [conversation(number) for number in range(ROWS)]


def write_mistral(folder: Path, tokenizers: Path) -> Any:
    """Save a random two-layer Mistral with the real vocabulary and template of version 3; return the tokenizer."""
    import torch  # noqa: PLC0415 -- 10 s, only if a model is made
    from transformers import MistralConfig, MistralForCausalLM  # noqa: PLC0415

    tokenizer = RealTokenizers(tokenizers).load("mistral v3")
    tokenizer.chat_template = cases()["mistral_v03"].source
    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, bos_token_id=1, eos_token_id=2, sliding_window=None,
    )  # fmt: skip
    folder.mkdir(parents=True)
    model: Any = MistralForCausalLM(config)
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return tokenizer


def learned_texts(tokenizer: Any, labels: list[int]) -> list[str]:
    """Decode each unbroken run of labels, including end tokens."""
    runs = [
        list(run) for learned, run in itertools.groupby(labels, lambda label: label != IGNORED) if learned
    ]
    return [tokenizer.decode(run, skip_special_tokens=False) for run in runs]


def table(path: Path) -> list[dict[str, Any]]:
    """Return the rows of an Arrow file of examples."""
    with pa.OSFile(str(path), "rb") as source:
        rows: list[dict[str, Any]] = pa.ipc.open_file(source).read_all().to_pylist()
    return rows


def test_labels_decode_to_exactly_the_two_answers_and_their_end_tokens(
    room: Kubectl, operator: ProvidedCluster, tmp_path: Path
) -> None:
    tokenizer = write_mistral(tmp_path / "models" / "mistral", tmp_path / "tokenizers")
    with product.volume_pod(room, jobs.CLAIM, operator.trainer_image) as pod:
        product.fill_volume(room, pod, tmp_path / "models", "models")
    model = {"source": {"persistentVolumeClaim": {"claimName": jobs.CLAIM, "path": "models/mistral"}}}
    dataset = {"configMap": {"name": "mistral", "key": "data.jsonl"}}
    room.apply(
        jobs.config_map("mistral", jobs.jsonl(CONVERSATIONS)),
        jobs.fine_tune_job("mistral", dataset=dataset, model=model, resources=jobs.ONLY_PREPARE),
    )

    job = jobs.prepared(room, "mistral", seconds=120)

    assert job["status"]["dataset"]["kept"] == ROWS
    assert job["status"]["model"]["architecture"] == "MistralForCausalLM"
    with product.volume_pod(room, "mistral-workspace", operator.trainer_image) as pod:
        product.read_volume(room, pod, "dataset", tmp_path / "dataset")
    learned: dict[int, list[str]] = {}
    for name in ("training", "validation"):
        for example in table(tmp_path / "dataset" / f"{name}.arrow"):
            labels, ids = example["labels"], example["input_ids"]
            assert all(label in {IGNORED, token} for label, token in zip(labels, ids, strict=True))
            learned.setdefault(example["row"], []).extend(learned_texts(tokenizer, labels))
    answers = {
        number: [message["content"] + END for message in row["messages"] if message["role"] == "assistant"]
        for number, row in enumerate(CONVERSATIONS, start=1)
    }
    found = {row: sorted(text.removeprefix(" ") for text in texts) for row, texts in learned.items()}
    assert found == {row: sorted(texts) for row, texts in answers.items()}
    shown = job["status"]["dataset"]["example"]
    assert shown["learned"].removeprefix(" ") in answers[shown["row"]] or all(
        text in shown["learned"] for text in answers[shown["row"]]
    )
