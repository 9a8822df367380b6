"""Generates answers with the adapter and without it: greedy, in batches, within limits of tokens, time and memory."""

from __future__ import annotations

import logging
import time
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from transformers import GenerationConfig, StoppingCriteria, StoppingCriteriaList

from finetune_trainer.evaluation.unpacked import unpacked_on_cpu
from finetune_trainer.model.output_head import TOLERANCE, gathered, language_model, output_head

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

_log = logging.getLogger(__name__)

MAXIMUM_ROWS = 16
"""Prompts of one batch. A step reads all weights whatever the number of rows, so several rows cost little more."""
MAXIMUM_TOKENS = 8192
"""Tokens of one batch with its padding and its answers: they bound the cache of keys and values."""
MAXIMUM_SECONDS = 120.0
"""Time for all answers by default. Batches that do not end in it are not measured."""
_TOKENS_TO_JUDGE = 8


@dataclass(frozen=True)
class Limits:
    """The tokens of one answer, the tokens that end it, and the moment (of `time.monotonic`) when all must be done.

    All ranks of a sharded model answer the same prompts. `agreed` returns whether any of them says so.
    """

    new_tokens: int
    stops: tuple[int, ...]
    deadline: float
    agreed: Callable[[bool], bool] = bool

    @property
    def over(self) -> bool:
        """Whether the time is over, on any rank."""
        return self.agreed(time.monotonic() >= self.deadline)


@dataclass(frozen=True)
class Answer:
    """The tokens of an answer without its end token; `ended` is False if it was cut at the limit of tokens."""

    tokens: tuple[int, ...]
    ended: bool


@dataclass(frozen=True)
class AnswerPair:
    """What both models answer to one prompt."""

    base: Answer
    tuned: Answer


def answer_pairs(
    model: Any,
    prompts: Sequence[Sequence[int]],
    limits: Limits,
    progress: Callable[[int, int], None],
    out_of_memory: Callable[[BaseException], bool],
) -> list[AnswerPair | None]:
    """Return the answers of the adapted `model` to each prompt, with its adapter and without it.

    An entry is None if its batch did not end before the deadline, or if the device has no room for it alone.
    If a batch does not fit, it and all later ones get half of the rows; `out_of_memory` tells such an error. `progress`
    gets (prompts answered, prompts in all) at every token, and what it raises ends the generation. The model must be
    in evaluation mode.
    """
    answers: list[AnswerPair | None] = [None] * len(prompts)
    # The longest come first, so that a device without enough memory fails at once.
    waiting = sorted(range(len(prompts)), key=lambda index: (-len(prompts[index]), index))
    width, proven, done = MAXIMUM_ROWS, False, 0
    with _own_settings(model), unpacked_on_cpu(model):
        while waiting and not limits.over:
            size = batch_size([len(prompts[index]) for index in waiting], limits.new_tokens, width)
            batch = [prompts[index] for index in waiting[:size]]
            tick = _Tick(partial(progress, done, len(prompts)), limits)
            try:
                if not proven and len({len(prompt) for prompt in batch}) > 1:
                    proven = True
                    if limits.agreed(not padding_is_exact(model, batch)):
                        _log.warning(
                            "the model computes padded prompts differently, so it answers them one by one"
                        )
                        width = 1
                        continue
                pairs = _batch(model, batch, limits, tick)
            except Exception as error:
                if not out_of_memory(error):
                    raise
                pairs = None
            if pairs is None:
                # Outside of `except`, because the error's frames hold the tensors that must be freed.
                _empty_cache()
                if size > 1:
                    width = size // 2
                    _log.info("too little memory for %d answers at once, continuing with %d", size, width)
                    continue
                _log.warning("too little memory to answer a prompt of %d tokens", len(batch[0]))
                pairs = [None]
            for index, pair in zip(waiting[:size], pairs, strict=True):
                answers[index] = pair
            waiting = waiting[size:]
            done += size
            progress(done, len(prompts))
    return answers


def batch_size(lengths: Sequence[int], new_tokens: int, width: int) -> int:
    """Return how many of the prompts, the longest first, make one batch of at most `width` rows, but at least one."""
    longest = lengths[0] + new_tokens
    return max(1, min(len(lengths), width, MAXIMUM_TOKENS // longest))


@torch.no_grad()
def padding_is_exact(model: Any, prompts: Sequence[Sequence[int]]) -> bool:
    """Return whether padding on the left changes no logits of the shortest prompt, beyond rounding.

    Generation in batches pads there. Most architectures take the mask for it, but few promise it.
    """
    shortest = min(prompts, key=len)
    longest = max(prompts, key=len)
    alone = _first_logits(model, [shortest])[0]
    padded = _first_logits(model, [longest, shortest])[1]
    tolerance = TOLERANCE[language_model(model).dtype][1]
    # NaN compares false. The losses tell about it, and it is no matter of padding.
    return not float((alone - padded).abs().max()) > tolerance * float(alone.abs().max())


def too_slow(elapsed: float, tokens: int, new_tokens: int, left: float) -> bool:
    """Return whether a batch that took `elapsed` seconds for `tokens` tokens cannot end in the `left` seconds.

    Answers often end at half of the limit of `new_tokens`. Without this, a slow device would use all the time for nothing.
    """
    if left <= 0:
        return True
    return tokens >= _TOKENS_TO_JUDGE and elapsed / tokens * (new_tokens / 2 - tokens) > left


class _Tick(StoppingCriteria):
    """Reports at every token, and stops all rows if the batch cannot end before the deadline."""

    def __init__(self, progress: Callable[[], None], limits: Limits) -> None:
        self._progress = progress
        self._limits = limits
        self._started = time.monotonic()
        self._tokens = 0
        self.expired = False

    def begin(self) -> None:
        """Start to count the tokens of one model's answers."""
        self._started, self._tokens = time.monotonic(), 0

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:  # noqa: ARG002 -- the base class's signature
        """Return True for every row if the time is over."""
        self._progress()
        self._tokens += 1
        now = time.monotonic()
        self.expired = self._limits.agreed(
            self.expired
            or too_slow(
                now - self._started, self._tokens, self._limits.new_tokens, self._limits.deadline - now
            )
        )
        return torch.full((input_ids.shape[0],), self.expired, dtype=torch.bool, device=input_ids.device)


def _batch(
    model: Any, prompts: Sequence[Sequence[int]], limits: Limits, tick: _Tick
) -> list[AnswerPair | None]:
    tuned = _generate(model, prompts, limits, tick)
    if not tick.expired:
        with model.disable_adapter():
            base = _generate(model, prompts, limits, tick)
    if tick.expired:
        # Short answers may have ended. To count only these would favor the rows with short answers.
        return [None] * len(prompts)
    return [AnswerPair(*pair) for pair in zip(base, tuned, strict=True)]


def _generate(model: Any, prompts: Sequence[Sequence[int]], limits: Limits, tick: _Tick) -> list[Answer]:
    ids, mask = _padded(model, prompts)
    tick.begin()
    with gathered(output_head(model).projection):
        output = language_model(model).generate(
            ids,
            attention_mask=mask,
            generation_config=_greedy(limits.new_tokens, limits.stops),
            stopping_criteria=StoppingCriteriaList([tick]),
        )
    return [_answer(row, limits.stops) for row in output[:, ids.shape[1] :].tolist()]


def _answer(tokens: Sequence[int], stops: Sequence[int]) -> Answer:
    """Return the tokens before the first end token; what follows it is padding."""
    end = next((place for place, token in enumerate(tokens) if token in stops), None)
    return Answer(tuple(tokens[:end]), end is not None)


def _first_logits(model: Any, prompts: Sequence[Sequence[int]]) -> torch.Tensor:
    """Return the logits (prompts, vocabulary), in float32, of the first token of each answer."""
    ids, mask = _padded(model, prompts)
    with gathered(output_head(model).projection):
        output = language_model(model).generate(
            ids,
            attention_mask=mask,
            generation_config=_greedy(1, (), output_logits=True, return_dict_in_generate=True),
        )
    logits: torch.Tensor = output.logits[0].float()
    return logits


def _padded(model: Any, prompts: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ids and mask (prompts, longest), padded on the left, so that every answer begins at the same place."""
    longest = max(len(prompt) for prompt in prompts)
    ids = torch.zeros((len(prompts), longest), dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, longest - len(prompt) :] = torch.tensor(list(prompt))
        mask[row, longest - len(prompt) :] = 1
    device = model.get_input_embeddings().weight.device
    return ids.to(device), mask.to(device)


def _greedy(new_tokens: int, stops: Sequence[int], **more: Any) -> GenerationConfig:
    """Return the settings of greedy decoding. Without stops, an answer has exactly `new_tokens` tokens."""
    return GenerationConfig(
        do_sample=False,
        num_beams=1,
        use_cache=True,
        max_new_tokens=new_tokens,
        eos_token_id=list(stops) or None,
        pad_token_id=stops[0] if stops else 0,
        **more,
    )


@contextmanager
def _own_settings(model: Any) -> Iterator[None]:
    """Hide the model's own generation settings inside of the `with` statement: they would fill in what is not set.

    A penalty or a temperature of the base would judge both models by settings that the job does not name.
    """
    causal = language_model(model)
    before = causal.generation_config
    causal.generation_config = GenerationConfig()
    try:
        yield
    finally:
        causal.generation_config = before


def _empty_cache() -> None:
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
