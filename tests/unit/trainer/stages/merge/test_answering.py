from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from finetune_trainer.contract.result import EndToken
from finetune_trainer.data.masking.example import IGNORED, Example
from finetune_trainer.errors import Reason, StageError
from finetune_trainer.stages.merge.answering import (
    fits,
    generated_answer,
    greedy_start,
    predicted_answer,
    require_stops,
)
from finetune_trainer.stages.merge.streamed_model import PlainWeights, StreamedModel
from finetune_trainer.stages.merge.tensor_files import TensorFiles
from transformers import GenerationConfig, LlamaConfig

from tests.support import workspaces

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("configured", "missing"), [(None, "2"), (1, "2"), ([1, 3], "2"), ([1, 2], None), (2, None)]
)
@pytest.mark.parametrize("file", [True, False])
def test_an_artifact_must_stop_at_every_learned_end(
    tmp_path: Path,
    configured: Any,
    missing: str | None,
    file: bool,  # noqa: FBT001 -- a table of cases
) -> None:
    """Without a generation config, a loader makes one from the model's config."""
    LlamaConfig(eos_token_id=configured).save_pretrained(tmp_path)
    if file:
        LlamaConfig(eos_token_id=9).save_pretrained(tmp_path)
        GenerationConfig(eos_token_id=configured).save_pretrained(tmp_path)
    if missing is None:
        require_stops(tmp_path, [EndToken(id=2, text="<|im_end|>")])
        return
    with pytest.raises(StageError, match=r"found none of <\|im_end\|> \(2\)") as caught:
        require_stops(tmp_path, [EndToken(id=2, text="<|im_end|>")])
    assert caught.value.reason is Reason.ARTIFACT_VERIFICATION_FAILED


@pytest.mark.parametrize(
    ("parameters", "free", "enough"), [(100, 572, True), (100, 571, False), (1, 0, False)]
)
def test_a_model_fits_with_70_percent_of_the_memory(parameters: int, free: int, enough: bool) -> None:  # noqa: FBT001 -- a table of cases
    assert fits(parameters, free) is enough


@pytest.mark.parametrize(
    ("best", "said"),
    [
        ([7, 8, 9, 5], [7, 8, 9]),
        ([7, 8, 4, 5], [7, 8, 4]),
        ([1, 8, 9, 5], [1]),
    ],
)
def test_the_greedy_answer_ends_with_the_first_other_token_or_the_turn(
    best: list[int], said: list[int]
) -> None:
    labels = [IGNORED, IGNORED, 7, 8, 9, IGNORED, 5]
    assert greedy_start(Example([1, 2, 7, 8, 9, 3, 5], labels), best) == said


def test_the_predicted_answer_is_the_start_of_the_generated_one(tmp_path: Path) -> None:
    """The expected answer is the model's own, with another token at the end."""
    folder = tmp_path / "base"
    workspaces.write_base(folder, "llama")
    tokenizer = workspaces.small_tokenizer()
    prompt = tokenizer("<|im_start|>user\nsay 7<|im_end|>\n<|im_start|>assistant\n")["input_ids"]
    example = Example([*prompt, 0], [*[IGNORED] * len(prompt), 0])
    shown, generated = generated_answer(folder, example)
    with TensorFiles(folder) as files:
        model = StreamedModel(folder, files)
        own: list[int] = []
        for _ in range(4):
            ids = [*prompt, *own, 0]
            whole = Example(ids, [*[IGNORED] * len(prompt), *ids[len(prompt) :]])
            (scores,) = model.score([whole], [()], PlainWeights(files))
            own.append(int(scores.best[-1]))
    assert predicted_answer(folder, whole, scores.best.tolist())[0] == shown == tokenizer.decode(prompt)
    text = predicted_answer(folder, whole, scores.best.tolist())[1]
    assert text == f"{tokenizer.decode(own, skip_special_tokens=True)}…"
    assert generated.startswith(text[:-1])
    exact = Example([*prompt, *own], [*[IGNORED] * len(prompt), *own])
    assert predicted_answer(folder, exact, own)[1] == text[:-1]
