"""Rows per second of PREPARE's proof, and of TRL's tokenizing and masking of the same rows."""

from __future__ import annotations

import random
import tempfile
import time
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import datasets
import torch
import transformers
from finetune_trainer.data.chat_template.template import ChatTemplate
from finetune_trainer.data.conversations.formats import parse_row
from finetune_trainer.data.dataset.proving import prove
from finetune_trainer.data.masking.masking import Masker
from finetune_trainer.data.rows.reader import Row
from finetune_trainer.data.rows.rejection import RowRejected
from transformers import AutoModelForCausalLM, LlamaConfig
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

if TYPE_CHECKING:
    from collections.abc import Iterator

_COMMON = (
    "the a of to in that is was for on with as by at from it this have be are not but which you we they can "
    "will time year people way day man thing woman life child world school state family student group country "
    "problem hand part place case week company system program question work government number night point "
    "home water room mother area money story fact month lot right study book eye job word business issue side "
    "kind head house service friend father power hour game line end member law car city community name "
    "president team minute idea body information nothing ago lead social whether watch together follow around "
    "parent only stop face anything"
)
_WORDS = _COMMON.split()
# Words of a user's and an assistant's text that make a row of about 300 tokens.
_SIZES = {1: (110, 150), 3: (35, 48)}


@dataclass(frozen=True)
class Rate:
    """Rows per second, and for the proof the labeled tokens as evidence of the work."""

    rows_per_second: float
    tokens_per_row: float


def conversations(turns: int, count: int, seed: int = 1) -> Iterator[dict[str, Any]]:
    """Yield `count` different rows of `turns` turns."""
    chosen = random.Random(seed)  # noqa: S311 -- reproducible, not secret
    asked, answered = _SIZES[turns]

    def text(words: int) -> str:
        return " ".join(chosen.choices(_WORDS, k=words)).capitalize() + "."

    for number in range(count):
        messages = []
        for turn in range(turns):
            messages += [
                {"role": "user", "content": f"{number}.{turn} {text(asked)}"},
                {"role": "assistant", "content": text(answered)},
            ]
        yield {"messages": messages}


def rows(turns: int, count: int) -> Iterator[Row]:
    """Yield the conversations in the form that the reader returns."""
    for number, value in enumerate(conversations(turns, count), start=1):
        yield Row(number, value, number)


def prove_rows(tokenizer: Any, turns: int, count: int) -> Rate:
    """Prove `count` rows with one process per CPU."""
    masker = Masker(ChatTemplate(tokenizer, None, {}), 2048, [tokenizer.eos_token_id])
    parse = partial(parse_row, format_name="Messages", reasoning="Keep")
    given = list(rows(turns, count))
    tokens = 0
    start = time.perf_counter()
    for proven in prove(given, masker, parse):
        if isinstance(proven.outcome, RowRejected):
            raise TypeError(f"row {proven.number} must be accepted, found {proven.outcome}")
        tokens += sum(len(example.input_ids) for example in proven.outcome)
    seconds = time.perf_counter() - start
    return Rate(count / seconds, tokens / count)


def trl_rows(tokenizer: Any, turns: int, count: int, processes: int, *, every_answer: bool) -> Rate:
    """Let SFTTrainer prepare the same rows.

    With `every_answer` it masks all but the assistant's turns, which needs a template that it knows. Without, it learns
    only the last answer (prompt and completion).
    """
    given = list(conversations(turns, count))
    if not every_answer:
        given = [{"prompt": row["messages"][:-1], "completion": row["messages"][-1:]} for row in given]
    model = AutoModelForCausalLM.from_config(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=8,
            intermediate_size=8,
            num_hidden_layers=1,
            num_attention_heads=1,
        ),
        dtype=torch.float32,
    )
    transformers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    with tempfile.TemporaryDirectory() as folder:
        trainer = _TimedTrainer(
            model=model,
            args=SFTConfig(
                output_dir=folder,
                assistant_only_loss=every_answer,
                max_length=2048,
                dataset_num_proc=processes,
                report_to="none",
                use_cpu=True,
                bf16=False,
            ),
            train_dataset=datasets.Dataset.from_list(given),
            processing_class=tokenizer,
        )
    prepared: Any = trainer.train_dataset
    tokens = sum(len(row["input_ids"]) for row in prepared)
    return Rate(count / trainer.seconds, tokens / count)


class _TimedTrainer(SFTTrainer):
    """TRL's trainer with a clock around the compared part."""

    seconds = 0.0

    def _prepare_dataset(self, *arguments: Any, **options: Any) -> Any:
        start = time.perf_counter()
        prepared = super()._prepare_dataset(*arguments, **options)
        self.seconds += time.perf_counter() - start
        return prepared
