"""Shows how the merged model answers a held-out prompt, and that it knows where to stop."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoConfig, AutoTokenizer, GenerationConfig

from finetune_trainer.data.masking.example import IGNORED
from finetune_trainer.errors import Reason, StageError
from finetune_trainer.model.generation import GENERATION_CONFIG
from finetune_trainer.model.load import attention_implementation
from finetune_trainer.model.text_model import runnable_on_text
from finetune_trainer.model.text_part import auto_class

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from finetune_trainer.contract.result import EndToken
    from finetune_trainer.data.masking.example import Example

_NEW_TOKENS = 64
_TEXT_LIMIT = 512
_MEMORY_SHARE = 0.7
_FLOAT32_BYTES = 4
_CUT = "…"


def fits(parameters: int, free: int) -> bool:
    """Return whether a model of so many parameters takes at most 70 % of the `free` bytes, in float32."""
    return _FLOAT32_BYTES * parameters < _MEMORY_SHARE * free


def require_stops(folder: Path, ends: Sequence[EndToken]) -> None:
    """Check that the artifact stops at every token at which it was taught to end an answer.

    Raises StageError(ArtifactVerificationFailed) with the tokens at which it would not.
    """
    configured = generation_config(folder).eos_token_id
    stops = configured if isinstance(configured, list) else [configured]
    missing = [f"{token.text} ({token.id})" for token in ends if token.id not in stops]
    if missing:
        raise StageError(
            Reason.ARTIFACT_VERIFICATION_FAILED,
            f"the merged model must stop at every token that ends a trained answer, found none of {', '.join(missing)} in "
            "its generation config; nothing was published, report a bug",
        )


def generation_config(folder: Path) -> GenerationConfig:
    """Return the generation config that a loader of `folder` would use."""
    if (folder / GENERATION_CONFIG).is_file():
        return GenerationConfig.from_pretrained(folder, local_files_only=True)
    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    return GenerationConfig.from_model_config(config)


def generated_answer(folder: Path, example: Example) -> tuple[str, str]:
    """Load the artifact as any user would, and let it answer a held-out prompt greedily; return (prompt, answer).

    A model that also sees or hears is loaded as a whole, by its own class, and answers as a whole. If that class cannot run on
    text alone, its text part answers.

    It computes in float32 on the CPU (see `model.load.compute_dtype`), and the whole model is in memory. Each text has
    at most 512 characters. The prompt is the text before the first supervised token with its control tokens, as in
    serving. A longer prompt keeps its end.
    """
    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    model: Any = (
        auto_class(config)
        .from_pretrained(
            folder,
            dtype=torch.float32,
            attn_implementation=attention_implementation(config),
            local_files_only=True,
            trust_remote_code=False,
        )
        .eval()
    )
    model = runnable_on_text(model)
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    length = example.supervised[0]
    ids = torch.tensor([example.input_ids[:length]])
    with torch.no_grad():
        output = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=_NEW_TOKENS,
            do_sample=False,
            eos_token_id=model.generation_config.eos_token_id or tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else IGNORED,
        )
    return _prompt(tokenizer, example), _text(tokenizer, output[0, length:].tolist())


def predicted_answer(folder: Path, example: Example, best: Sequence[int]) -> tuple[str, str]:
    """Return (prompt, start of the greedy answer), for a model that is too large to generate with.

    `best` are the most probable tokens at the supervised positions, which a comparison has found already. As long as
    they equal the expected answer, they are what greedy decoding gives; the first other token ends the text, with an
    ellipsis. This reads no weight.
    """
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    said = greedy_start(example, best)
    whole = said[-1] == example.input_ids[example.supervised[0] + len(said) - 1]
    return _prompt(tokenizer, example), _text(tokenizer, said) + ("" if whole else _CUT)


def greedy_start(example: Example, best: Sequence[int]) -> list[int]:
    """Return the tokens of the first answer up to the first that differs from the expected one, and with it."""
    first = example.supervised[0]
    said: list[int] = []
    for index, (position, token) in enumerate(zip(example.supervised, best, strict=True)):
        if position != first + index:
            break  # the next turn
        said.append(token)
        if token != example.input_ids[position]:
            break
    return said


def _prompt(tokenizer: Any, example: Example) -> str:
    return str(tokenizer.decode(example.input_ids[: example.supervised[0]]))[-_TEXT_LIMIT:]


def _text(tokenizer: Any, ids: Sequence[int]) -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=True))[:_TEXT_LIMIT]
