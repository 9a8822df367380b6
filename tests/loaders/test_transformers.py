"""Artifacts load and answer in transformers 5 and 4, without bitsandbytes, like the model that was trained."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from finetune_trainer.model.load import load_quantized
from finetune_trainer.stages.merge.stage import merge
from finetune_trainer.stages.train.stage import train
from finetune_trainer.telemetry.reporter import NullReporter
from peft import PeftModel

from tests.support import workspaces
from tests.support.loaders.agreement import Answer, decided_share, differences, equal_answers
from tests.support.loaders.process import TRANSFORMERS_4, Loader
from tests.support.loaders.serve_models import greedy, row_logits

pytestmark = pytest.mark.loaders

# The training numbers are below 200.
HELD_OUT = range(200, 264)
CONVERSATIONS = [[{"role": "user", "content": f"say {number}"}] for number in HELD_OUT]
NEW_TOKENS = 6
_SIZES = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    # Weights as large as this let the answer depend on the prompt, though the model knows nothing.
    "initializer_range": 0.15,
    "tie_word_embeddings": False,
}
TIED = {"tie_word_embeddings": True}


@dataclass(frozen=True)
class Base:
    """A base model: its class, what is special in its config, and the transformers that saved it."""

    name: str
    config_class: str
    config: dict[str, Any] = field(default_factory=dict)
    shard: str = "5GB"
    saved_by: int = 4


BASES = (
    # transformers 4 would take a rotary base of 10000 if it did not find the number under its old name.
    Base("llama", "LlamaConfig", {"attention_bias": True, "rope_theta": 500.0, **TIED}, "60KB"),
    Base("qwen3", "Qwen3Config", {"head_dim": 16, "rope_theta": 500.0}),
    Base("mistral", "MistralConfig", {}, "60KB", saved_by=5),
)


@dataclass(frozen=True)
class Loaded:
    """One artifact in one loader: the tokens of the prompts, the answers, and the logits of the rows."""

    prompts: list[list[int]]
    answers: list[list[int]]
    logits: Any


@dataclass(frozen=True)
class Case:
    """A trained base with what the trained model and each loader say; `loaded` has the key (kind, loader)."""

    base: Path
    output: Path
    trained: list[Answer]
    trained_logits: Any
    untrained_logits: Any
    prompts: list[list[int]]
    loaded: dict[tuple[str, int], Loaded]
    tokenizer_errors: dict[str, str | None]


def _write_base(base: Base, folder: Path, tokenizer: Path, loader: Loader) -> None:
    own = workspaces.small_tokenizer()
    ends = {"eos_token_id": own.eos_token_id, "pad_token_id": own.pad_token_id, "bos_token_id": None}
    found = loader.ask(
        "save_base",
        folder=str(folder),
        seed=7,
        shard=base.shard,
        config_class=base.config_class,
        config={**_SIZES, **base.config, **ends, "vocab_size": len(own)},
        tokenizer=str(tokenizer),
        eos=own.eos_token,
        pad=own.pad_token,
        template=workspaces.TEMPLATE,
    )
    assert not found, found


def _case(base: Base, root: Path, tokenizer: Path, loaders: dict[int, Loader]) -> Case:
    root.mkdir()
    _write_base(base, root / "base", tokenizer, loaders[base.saved_by])
    workspace = workspaces.prepare(root / "workspace", root / "base")
    run = workspaces.run_spec(root / "workspace", root / "output", maximumSteps=10)
    kinds = {"artifacts": ("Adapter", "Merged", "BaseAsTrained")}
    run = run.model_copy(update={"output": run.output.model_copy(update=kinds)})
    train(run, NullReporter())
    merge(run, NullReporter())
    served: dict[str, dict[str, str | None]] = {
        "merged": {"model": str(root / "output" / "merged"), "adapter": None},
        "adapter": {
            "model": str(root / "output" / "base-as-trained"),
            "adapter": str(root / "output" / "adapter"),
        },
    }
    own = workspaces.small_tokenizer()
    texts = [
        str(own.apply_chat_template(talk, tokenize=False, add_generation_prompt=True))
        for talk in CONVERSATIONS
    ]
    prompts = own(texts, add_special_tokens=False)["input_ids"]
    rows = [
        own(f"{text}{number} {number}<|im_end|>", add_special_tokens=False)["input_ids"]
        for text, number in zip(texts[:8], HELD_OUT, strict=False)
    ]
    # transformers 4 reads no tokenizer that transformers 5 saved, not even the base's. So it gets the same one of another base.
    readable = {4: str(root.parent / BASES[0].name / "base") if base.saved_by == 5 else None, 5: None}
    errors: dict[str, str | None] = {}
    for kind, folders in served.items():
        for version, loader in loaders.items():
            loader.send(
                "answer",
                **folders,
                tokenizer=readable[version],
                conversations=CONVERSATIONS,
                rows=rows,
                new_tokens=NEW_TOKENS,
                logits=str(root / f"{kind}.{version}.npy"),
            )
    for folder in ("base", "output/merged", "output/adapter"):
        loaders[4].send("read_tokenizer", folder=str(root / folder))
    model = load_quantized(workspace.quantized_model, "cpu").eval()
    untrained = row_logits(model, rows)
    model = PeftModel.from_pretrained(model, workspace.adapter).eval()
    said = greedy(model, prompts, NEW_TOKENS, own.pad_token_id, eos_token_id=own.eos_token_id)
    trained = [Answer(*one) for one in said]
    loaded = {}
    for kind in served:
        for version, loader in loaders.items():
            found = loader.receive()
            assert "error" not in found, (base.name, kind, version, found)
            logits = np.load(root / f"{kind}.{version}.npy")
            loaded[kind, version] = Loaded(found["prompts"], found["answers"], logits)
    for folder in ("base", "output/merged", "output/adapter"):
        errors[folder] = loaders[4].receive().get("error")
    return Case(
        root / "base",
        root / "output",
        trained,
        row_logits(model, rows),
        untrained,
        prompts,
        loaded,
        errors,
    )


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Case]:
    """Train every base, and let both loaders answer with each artifact."""
    root = tmp_path_factory.mktemp("loaders")
    with Loader(TRANSFORMERS_4) as old, Loader() as new:
        old.send("versions")
        new.send("versions")
        own = root / "tokenizer"
        workspaces.small_tokenizer().save_pretrained(own)
        assert old.receive()["transformers"].startswith("4.57.")
        assert new.receive()["transformers"].startswith("5.")
        loaders = {4: old, 5: new}
        return {base.name: _case(base, root / base.name, own / "tokenizer.json", loaders) for base in BASES}


EVERY = pytest.mark.parametrize("name", [base.name for base in BASES])


@EVERY
@pytest.mark.parametrize("kind", ["merged", "adapter"])
def test_both_loaders_compute_the_same_function(cases: dict[str, Case], name: str, kind: str) -> None:
    old, new = (cases[name].loaded[kind, version] for version in (4, 5))
    assert np.abs(old.logits - new.logits).max() <= 1e-4
    assert old.answers == new.answers


@EVERY
@pytest.mark.parametrize("kind", ["merged", "adapter"])
@pytest.mark.parametrize("version", [4, 5])
def test_an_artifact_answers_like_the_trained_model(
    cases: dict[str, Case], name: str, kind: str, version: int
) -> None:
    """Weights rounded once to bf16 move the logits a little, which decides only between almost equal tokens."""
    case = cases[name]
    loaded = case.loaded[kind, version]
    noise = np.abs(loaded.logits - case.trained_logits).max()
    effect = np.abs(case.trained_logits - case.untrained_logits).max()
    assert noise <= 0.03 * effect
    assert loaded.prompts == case.prompts
    assert differences(case.trained, loaded.answers, 2 * float(noise)) == []
    assert decided_share(case.trained, 2 * float(noise)) >= 0.5, "noise would excuse most differences"
    assert equal_answers(case.trained, loaded.answers) >= 0.85 * len(HELD_OUT)


@EVERY
def test_an_artifact_has_the_bytes_of_the_files_of_its_base(cases: dict[str, Case], name: str) -> None:
    """So an artifact can be read by the versions that read its base: transformers 4 reads no tokenizer of transformers 5."""
    case = cases[name]
    small = {path.name: path for path in case.base.iterdir() if path.suffix != ".safetensors"}
    for path in small.values():
        assert (case.output / "merged" / path.name).read_bytes() == path.read_bytes()
    errors = case.tokenizer_errors
    if "rope_theta" in json.loads(small["config.json"].read_text()):
        assert set(errors.values()) == {None}
    else:
        assert all(error and "TokenizersBackend" in error for error in errors.values())
