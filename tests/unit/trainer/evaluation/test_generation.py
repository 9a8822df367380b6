"""Greedy answers with and without the adapter, on a tiny real model."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from finetune_trainer.errors import Reason, StageError
from finetune_trainer.evaluation import generation
from finetune_trainer.evaluation.generation import (
    MAXIMUM_TOKENS,
    Answer,
    Limits,
    answer_pairs,
    batch_size,
    padding_is_exact,
    too_slow,
)
from peft import LoraConfig, get_peft_model
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

PROMPTS = [[1, 2, 3], [4, 5, 6, 7, 8, 9, 10], [11], [3, 1, 2, 5, 9], [2, 4]]
NEW = 6


@pytest.fixture
def model() -> Any:
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=24,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        initializer_range=1.0,
    )
    adapted: Any = get_peft_model(
        LlamaForCausalLM(config), LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
    )
    return adapted.eval()


def limits(*stops: int, seconds: float = 60.0, new_tokens: int = NEW) -> Limits:
    return Limits(new_tokens, stops, time.monotonic() + seconds)


def ask(model: Any, found: Limits, progress: Callable[[int, int], None] = lambda *_: None) -> Any:
    return answer_pairs(
        model, PROMPTS, found, progress, lambda error: isinstance(error, torch.OutOfMemoryError)
    )


@torch.no_grad()
def continued(model: Any, prompt: list[int], tokens: int = NEW) -> tuple[int, ...]:
    """Greedy decoding by whole forward passes, without a cache, padding or `generate`."""
    ids = list(prompt)
    for _ in range(tokens):
        ids.append(int(model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
    return tuple(ids[len(prompt) :])


def test_a_batch_gives_the_greedy_answers_of_both_models(model: Any) -> None:
    pairs = ask(model, limits())
    for prompt, pair in zip(PROMPTS, pairs, strict=True):
        assert pair.tuned == Answer(continued(model, prompt), ended=False)
        with model.disable_adapter():
            assert pair.base == Answer(continued(model, prompt), ended=False)
    assert any(pair.base != pair.tuned for pair in pairs)


def test_an_answer_ends_before_the_first_end_token(model: Any) -> None:
    whole = continued(model, PROMPTS[0])
    stop = whole[3]
    pair = ask(model, limits(stop))[0]
    assert pair.tuned == Answer(whole[: whole.index(stop)], ended=True)


def test_the_models_own_settings_do_not_change_the_answers_and_stay(model: Any) -> None:
    plain = ask(model, limits())
    settings = GenerationConfig(do_sample=True, temperature=9.0, repetition_penalty=5.0, max_length=2)
    causal = model.get_base_model()
    causal.generation_config = settings
    assert ask(model, limits()) == plain
    assert causal.generation_config is settings


@contextmanager
def memory_for(model: Any, rows: int) -> Iterator[list[int]]:
    """Let each forward pass fail as a full device does if its batch has more rows."""
    causal = model.get_base_model()
    seen: list[int] = []

    def limited(module: Any, arguments: Any, named: Any) -> None:  # noqa: ARG001 -- torch's signature
        seen.append(len(named["input_ids"]))
        if seen[-1] > rows:
            raise torch.OutOfMemoryError("CUDA out of memory")

    handle = causal.register_forward_pre_hook(limited, with_kwargs=True)
    try:
        yield seen
    finally:
        handle.remove()


def test_a_full_device_gets_half_of_the_rows_until_they_fit(model: Any) -> None:
    plain = ask(model, limits())
    with memory_for(model, 2) as seen:
        assert ask(model, limits()) == plain
    assert set(seen) == {5, 2, 1}


def test_prompts_that_do_not_fit_alone_are_not_answered(model: Any) -> None:
    with memory_for(model, 0):
        assert ask(model, limits()) == [None] * len(PROMPTS)


def test_another_error_is_not_hidden(model: Any) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("no kernel")

    model.get_base_model().register_forward_pre_hook(broken)
    with pytest.raises(RuntimeError, match="no kernel"):
        ask(model, limits())


def test_answers_that_do_not_end_in_time_are_not_measured(model: Any) -> None:
    assert ask(model, limits(seconds=-1)) == [None] * len(PROMPTS)
    found = limits(seconds=0.5, new_tokens=100_000)
    assert ask(model, found) == [None] * len(PROMPTS)
    assert time.monotonic() - found.deadline < 5


@pytest.mark.parametrize(
    ("elapsed", "tokens", "left", "expected"),
    [(8.0, 8, 41.9, True), (8.0, 8, 42.1, False), (7.0, 7, 1.0, False), (0.0, 1, 0.0, True)],
)
def test_a_batch_that_cannot_end_is_given_up_early(
    elapsed: float, tokens: int, left: float, *, expected: bool
) -> None:
    assert too_slow(elapsed, tokens, 100, left) == expected


def test_a_request_to_stop_is_obeyed_at_the_next_token(model: Any) -> None:
    calls = []

    def stop(done: int, total: int) -> None:
        calls.append((done, total))
        if len(calls) == 3:
            raise StageError(Reason.INTERRUPTED, "stop")

    with pytest.raises(StageError):
        ask(model, limits(), stop)
    assert calls == [(0, 5)] * 3


def test_progress_counts_answered_prompts(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generation, "MAXIMUM_ROWS", 2)
    seen: list[tuple[int, int]] = []
    ask(model, limits(), lambda done, total: seen.append((done, total)))
    assert list(dict.fromkeys(seen)) == [(0, 5), (2, 5), (4, 5), (5, 5)]


def test_a_model_that_attends_to_padding_answers_one_by_one(model: Any) -> None:
    assert padding_is_exact(model, PROMPTS)

    def unmasked(module: Any, arguments: Any, named: Any) -> Any:  # noqa: ARG001 -- torch's signature
        return arguments, {**named, "attention_mask": None, "position_ids": None}

    model.get_base_model().register_forward_pre_hook(unmasked, with_kwargs=True)
    assert not padding_is_exact(model, PROMPTS)
    for prompt, pair in zip(PROMPTS, ask(model, limits()), strict=True):
        assert pair.tuned.tokens == continued(model, prompt)


def test_a_batch_is_bounded_by_rows_and_by_tokens_with_the_answers() -> None:
    assert batch_size([10] * 40, 10, 16) == 16
    assert batch_size([10] * 3, 10, 16) == 3
    assert batch_size([MAXIMUM_TOKENS // 4 - 10] * 40, 10, 16) == 4
    assert batch_size([10 * MAXIMUM_TOKENS], 10, 16) == 1
