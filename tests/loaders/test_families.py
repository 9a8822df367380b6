"""Models with the published configs of families go through all stages, and load in transformers 5 and 4."""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from finetune_trainer.contract.result import MergeResult
from finetune_trainer.contract.run_spec import RunSpec
from finetune_trainer.contract.train_result import TrainResult
from finetune_trainer.model.load import load_quantized
from finetune_trainer.model.safetensors_file import read_header
from finetune_trainer.stages.merge.stage import merge
from finetune_trainer.stages.prepare.stage import prepare
from finetune_trainer.stages.train.stage import train
from finetune_trainer.telemetry.reporter import NullReporter
from finetune_trainer.workspace.layout import WorkspaceLayout
from peft import PeftModel

from tests.support import workspaces
from tests.support.loaders.agreement import Answer, decided_share, differences, equal_answers
from tests.support.loaders.process import TRANSFORMERS_4, Loader
from tests.support.loaders.serve_models import complete, greedy, row_logits
from tests.support.published_models import PUBLISHED, Published, tokenizer_of, write_published
from tests.support.tiny_models import conversation_rows, write_rows

pytestmark = [pytest.mark.loaders, pytest.mark.slow]

NEW_TOKENS = 6


@dataclass(frozen=True)
class Case:
    """A family's results, and what the trained model and each version of transformers answer."""

    base: Path
    artifact: Path
    tuned: TrainResult
    merged: MergeResult
    trained: list[Answer]
    trained_logits: Any
    untrained_logits: Any
    answers: dict[int, list[list[int]]]
    logits: dict[int, Any]


def _run(root: Path, model: Published) -> RunSpec:
    lora = {"rank": 4, "alpha": 8, "dropout": 0, "targetModules": "AllLinear", "variant": model.variant}
    run = workspaces.run_spec(
        root / "workspace", root / "output", maximumSteps=4, learningRate=0.005, maximumLength=256, lora=lora
    )
    document = json.loads(run.model_dump_json(by_alias=True, exclude_unset=True))
    document["model"] = {
        "source": {"kind": "Directory", "path": str(root / "base")},
        "chatTemplateArguments": model.arguments,
    }
    document["dataset"]["source"] = {"kind": "File", "path": str(root / "rows.jsonl")}
    document["dataset"]["validation"] = {"fraction": 0.25}
    return RunSpec.model_validate_json(json.dumps(document))


def _prompts(model: Published) -> list[list[int]]:
    """Return the prompts of unseen questions that have the same number of tokens, so that none needs padding."""
    tokenizer = tokenizer_of(model)
    texts = [
        str(
            tokenizer.apply_chat_template(
                [{"role": "user", "content": f"what is {number} + 1"}],
                tokenize=False,
                add_generation_prompt=True,
                **model.arguments,
            )
        )
        for number in range(100, 124)
    ]
    found = sorted(tokenizer(texts, add_special_tokens=False)["input_ids"], key=len)
    return max((list(group) for _, group in groupby(found, key=len)), key=len)


def _case(root: Path, model: Published, old: Loader) -> Case:
    base = write_published(root / "base", model)
    write_rows(root / "rows.jsonl", conversation_rows(32))
    run = _run(root, model)
    prepare(run, NullReporter())
    tuned = train(run, NullReporter())
    merged = merge(run, NullReporter())
    prompts = _prompts(model)
    artifact = root / "output" / "merged"
    pad = tokenizer_of(model).pad_token_id or 0
    request = {"model": str(artifact), "prompts": prompts, "new_tokens": NEW_TOKENS, "pad": pad}
    old.send("complete", **request, logits=str(root / "4.npy"))
    answers = {5: complete({**request, "logits": str(root / "5.npy")})["answers"]}
    layout = WorkspaceLayout(run.workspace.path)
    network = load_quantized(layout.quantized_model, "cpu").eval()
    untrained = row_logits(network, prompts)
    network = PeftModel.from_pretrained(network, layout.adapter).eval()
    stops = json.loads((artifact / "generation_config.json").read_text())["eos_token_id"]
    trained = [Answer(*one) for one in greedy(network, prompts, NEW_TOKENS, pad, eos_token_id=stops)]
    trained_logits = row_logits(network, prompts)
    found = old.receive()
    assert "error" not in found, found
    answers[4] = found["answers"]
    logits = {version: np.load(root / f"{version}.npy") for version in (4, 5)}
    return Case(base, artifact, tuned, merged, trained, trained_logits, untrained, answers, logits)


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Case]:
    """Take every family through the stages, in this process: imports take longer than the stages."""
    root = tmp_path_factory.mktemp("families")
    with Loader(TRANSFORMERS_4) as old:
        return {name: _case(root / name.replace(" ", "-"), model, old) for name, model in PUBLISHED.items()}


EVERY = pytest.mark.parametrize("name", PUBLISHED)


@EVERY
def test_a_family_trains_and_its_merge_is_proven(cases: dict[str, Case], name: str) -> None:
    case = cases[name]
    assert case.tuned.steps == 4
    assert case.merged.verification is not None
    assert case.merged.verification.verdict == "Proven"


@EVERY
@pytest.mark.parametrize("version", [4, 5])
def test_a_merged_model_answers_like_the_trained_one(cases: dict[str, Case], name: str, version: int) -> None:
    """Weights rounded once to bf16 move the logits a little, which decides only between almost equal tokens.

    In all answers of one family, the same pair of such tokens may come first. So equal answers are counted over all families.
    """
    case = cases[name]
    noise = float(np.abs(case.logits[version] - case.trained_logits).max())
    effect = float(np.abs(case.trained_logits - case.untrained_logits).max())
    assert noise <= 0.05 * effect
    assert differences(case.trained, case.answers[version], 2 * noise) == []
    assert decided_share(case.trained, 2 * noise) >= 0.25, "noise would excuse nearly every difference"


@pytest.mark.parametrize("version", [4, 5])
def test_most_answers_of_merged_models_are_those_of_the_trained_ones(
    cases: dict[str, Case], version: int
) -> None:
    equal = [equal_answers(case.trained, case.answers[version]) for case in cases.values()]
    assert sum(equal) >= 0.8 * sum(len(case.trained) for case in cases.values()), dict(
        zip(cases, equal, strict=True)
    )


def test_most_answers_depend_on_their_prompts(cases: dict[str, Case]) -> None:
    """Otherwise equal answers would prove nothing."""
    varied = [name for name, case in cases.items() if len({tuple(one.tokens) for one in case.trained}) > 1]
    assert len(varied) >= 6


@EVERY
def test_a_merged_model_has_the_files_and_tensors_of_its_base(cases: dict[str, Case], name: str) -> None:
    """No published member of a config is lost except code, and a tied head is not written."""
    case = cases[name]
    published = json.loads((case.base / "config.json").read_text())
    published.pop("auto_map", None)
    assert json.loads((case.artifact / "config.json").read_text()) == published
    assert {path.name: tensors(path) for path in case.artifact.glob("*.safetensors")} == {
        path.name: tensors(path) for path in case.base.glob("*.safetensors")
    }


def tensors(path: Path) -> set[tuple[str, tuple[int, ...]]]:
    return {(entry.name, tuple(entry.shape)) for entry in read_header(path)}
