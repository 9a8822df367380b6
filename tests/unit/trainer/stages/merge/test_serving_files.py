from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import gguf
import pytest
from finetune_trainer.errors import Reason, StageError
from finetune_trainer.stages.merge.serving_files import add_stops, keep_one_template, name_weights
from transformers import AutoTokenizer

from tests.support.tiny_models import tiny_tokenizer

STALE, TRAINED = "{# stale #}", "{# trained #}"


def write(path: Path, document: Any) -> bytes:
    content = json.dumps(document, indent=4).encode()
    path.write_bytes(content)
    return content


def read(path: Path) -> Any:
    return json.loads(path.read_text())


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    """Return a folder with a tokenizer and no chat template."""
    own = tiny_tokenizer()
    own.chat_template = None
    own.save_pretrained(tmp_path)
    return tmp_path


def put(folder: Path, places: dict[str, Any]) -> None:
    if "jinja" in places:
        (folder / "chat_template.jinja").write_text(places["jinja"])
    if "config" in places:
        write(
            folder / "tokenizer_config.json",
            {**read(folder / "tokenizer_config.json"), "chat_template": places["config"]},
        )
    if "processor" in places:
        write(folder / "chat_template.json", {"chat_template": places["processor"]})
        write(folder / "processor_config.json", {"chat_template": places["processor"], "size": 1})


@pytest.mark.parametrize(
    "places",
    [
        {"jinja": TRAINED},
        {"config": TRAINED},
        {"jinja": TRAINED, "config": STALE},
        {"jinja": TRAINED, "config": None},
        {
            "jinja": TRAINED,
            "config": [{"name": "default", "template": STALE}, {"name": "tool_use", "template": STALE}],
        },
        {"config": TRAINED, "processor": STALE},
        {"jinja": TRAINED, "config": STALE, "processor": STALE},
    ],
    ids=["jinja", "config", "both", "empty", "named", "processor", "all"],
)
def test_one_template_is_left_and_every_reader_finds_the_trained_one(
    tokenizer: Path, places: dict[str, Any]
) -> None:
    """The readers are transformers, which servers in Python use, and llama.cpp's converter."""
    put(tokenizer, places)
    keep_one_template(tokenizer)
    written = [
        path for path in tokenizer.iterdir() if any(text in path.read_text() for text in (STALE, TRAINED))
    ]
    assert len(written) == 1
    assert AutoTokenizer.from_pretrained(tokenizer).chat_template == TRAINED
    assert gguf.SpecialVocab(tokenizer).chat_template == TRAINED


def test_named_templates_of_the_base_stay_where_they_are(tokenizer: Path) -> None:
    named = [{"name": "default", "template": TRAINED}, {"name": "tool_use", "template": "{# tools #}"}]
    put(tokenizer, {"config": named})
    before = (tokenizer / "tokenizer_config.json").read_bytes()
    keep_one_template(tokenizer)
    assert (tokenizer / "tokenizer_config.json").read_bytes() == before


@pytest.mark.parametrize(
    ("dtype", "config", "expected"),
    [
        ("BFloat16", {"a": 1, "torch_dtype": "float16"}, {"a": 1, "torch_dtype": "bfloat16"}),
        ("BFloat16", {"dtype": "float32"}, {"dtype": "bfloat16"}),
        ("BFloat16", {"a": 1}, {"a": 1, "torch_dtype": "bfloat16"}),
        ("AsBase", {"torch_dtype": "float16"}, {"torch_dtype": "float16"}),
        ("AsBase", {"a": 1, "quantization_config": None, "quantization": {}}, {"a": 1}),
        ("AsBase", {"a": 1, "auto_map": {"AutoModel": "modeling.Model"}}, {"a": 1}),
    ],
)
def test_the_config_describes_the_written_weights(
    tmp_path: Path, dtype: Literal["BFloat16", "AsBase"], config: Any, expected: Any
) -> None:
    write(tmp_path / "config.json", config)
    name_weights(tmp_path, dtype)
    assert read(tmp_path / "config.json") == expected


@pytest.mark.parametrize("member", ["quantization_config", "compression_config", "quantization"])
def test_a_config_with_the_settings_of_a_quantizer_is_not_published(tmp_path: Path, member: str) -> None:
    write(tmp_path / "config.json", {member: {"bits": 4}})
    with pytest.raises(StageError, match=f"must have no {member}") as caught:
        name_weights(tmp_path, "BFloat16")
    assert caught.value.reason is Reason.ARTIFACT_VERIFICATION_FAILED


@pytest.mark.parametrize("dtype", ["BFloat16", "AsBase"])
def test_files_that_are_right_keep_their_bytes(tmp_path: Path, dtype: Literal["BFloat16", "AsBase"]) -> None:
    before = {
        name: write(tmp_path / name, document)
        for name, document in (
            ("config.json", {"torch_dtype": "bfloat16"}),
            ("tokenizer_config.json", {"chat_template": TRAINED}),
            ("generation_config.json", {"eos_token_id": 2}),
        )
    }
    name_weights(tmp_path, dtype)
    keep_one_template(tmp_path)
    add_stops(tmp_path, tmp_path / "config.json", [2])
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("content", [None, b"{", b'{"eos_token_id": 0}'], ids=["missing", "damaged", "other"])
def test_the_generation_config_stops_at_the_learned_end(tmp_path: Path, content: bytes | None) -> None:
    write(tmp_path / "config.json", {"eos_token_id": 0})
    if content is not None:
        (tmp_path / "generation_config.json").write_bytes(content)
    add_stops(tmp_path, tmp_path / "config.json", [2])
    assert read(tmp_path / "generation_config.json")["eos_token_id"] == [0, 2]
