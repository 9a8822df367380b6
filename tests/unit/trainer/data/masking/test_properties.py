"""With random conversations and templates, exactly the answers are learned, in the form that servers use."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import hypothesis.strategies as st
import pytest
from finetune_trainer.data.chat_template.template import ChatTemplate
from finetune_trainer.data.conversations.conversation import parse_conversation
from finetune_trainer.data.masking.escaping import MARK
from finetune_trainer.data.masking.masking import Masker
from finetune_trainer.data.rows.rejection import RowReason, RowRejected
from hypothesis import HealthCheck, given, settings
from tokenizers import AddedToken

from tests.support.chat_templates.real_tokenizers import RealTokenizers
from tests.support.tiny_models import tiny_tokenizer

if TYPE_CHECKING:
    from finetune_trainer.data.masking.example import Example

_SPECIAL = ("<|user|>", "<|bot|>", "<|system|>", "<|end|>", "<|bos|>", "<|role|>")
_SETTINGS = settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)


@dataclass(frozen=True)
class Parts:
    """A template made of parts of real templates."""

    bos: str
    user_header: str
    answer_header: str
    lead: str
    user_end: str
    answer_end: str
    trims: bool
    system: str
    history: str
    prompts: bool

    @property
    def source(self) -> str:
        """Jinja text."""
        content = "(m.content | trim)" if self.trims else "m.content"
        end = {
            "eos": "{{ eos_token }}",
            "last": "{% if loop.last %}{{ eos_token }}{% else %}<|end|>{% endif %}",
        }.get(self.answer_end, self.answer_end)
        system = {
            "own": "{% if m.role == 'system' %}<|system|>{{ m.content }}" + self.user_end + "{% endif %}",
            "first": "",
            "last": "",
            "rejected": "{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}",
            "dropped": "",
        }[self.system]
        where = {"first": "loop.index0 == first", "last": "loop.index0 == final"}.get(self.system, "false")
        answer = {
            "kept": content,
            "trace dropped": f"({content} if loop.last else {content}.split('</think>')[-1])",
            "left out": f"({content} if loop.last else '(an answer)')",
        }[self.history]
        return (
            "{% set ns = namespace(first=-1, final=-1) %}{% for m in messages %}{% if m.role == 'user' %}"
            "{% if ns.first < 0 %}{% set ns.first = loop.index0 %}{% endif %}"
            "{% set ns.final = loop.index0 %}{% endif %}{% endfor %}"
            "{% set first = ns.first %}{% set final = ns.final %}" + self.bos + "{% for m in messages %}" + system
            + "{% if m.role == 'user' %}" + self.user_header
            + "{% if " + where + " and messages[0].role == 'system' %}{{ messages[0].content + '\n\n' }}{% endif %}"
            + "{{ " + content + " }}" + self.user_end
            + "{% elif m.role == 'assistant' %}" + self.answer_header + self.lead
            + "{{ " + answer + " }}" + end + "{% endif %}{% endfor %}"
            + ("{% if add_generation_prompt %}" + self.answer_header + "{% endif %}" if self.prompts else "")
        )  # fmt: skip

    def writes_all_of(self, messages: list[dict[str, str]]) -> bool:
        """Return True if it accepts these messages and leaves nothing out: then the row must be accepted."""
        system = messages[0]["role"] != "system" or self.system not in {"rejected", "dropped"}
        return system and (self.history != "left out" or len(messages) <= 3)


parts = st.builds(
    Parts,
    bos=st.sampled_from(["", "{{ bos_token }}", "<|bos|>", "Preamble.\n"]),
    user_header=st.sampled_from(
        ["<|user|>\n", "User: ", "[INST] ", "### Instruction:\n", "<|role|>USER\n", ""]
    ),
    answer_header=st.sampled_from(["<|bot|>\n", "Bot:", "### Response:\n", "<|role|>BOT\n", "<|bot|>"]),
    lead=st.sampled_from(["", " ", "\n", "<|role|>final\n"]),
    user_end=st.sampled_from(["<|end|>\n", "<|end|>", "\n\n", "{{ eos_token }}", " [/INST]"]),
    answer_end=st.sampled_from(["<|end|>\n", "eos", "last", "\n\n", "<|end|>{{ eos_token }}"]),
    trims=st.booleans(),
    system=st.sampled_from(["own", "own", "first", "last", "rejected", "dropped"]),
    history=st.sampled_from(["kept", "kept", "trace dropped", "left out"]),
    prompts=st.booleans(),
)
_WORDS = st.sampled_from(
    [
        "yes",
        "no",
        "User",
        "Bot:",
        "the cat",
        "user",
        "final",
        "it is 4",
        "<b>",
        "[INST",
        "{{ x }}",
        "a",
        "\n",
        " ",
        "  ",
        "你好",
        "🙂",
        "e\u0301",
        "</p>",
        "{% if %}",
        "### ",
        "0",
        "...",
        "\t",
        "é",
        "שלום",
        "'",
        '"',
        "\\n",
    ]
)
texts = st.lists(_WORDS, min_size=1, max_size=6).map("".join).filter(lambda text: bool(text.strip()))
letters = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=20).filter(
    lambda text: bool(text.strip())
)
contents = st.one_of(texts, letters)


@st.composite
def conversations(draw: st.DrawFn) -> list[dict[str, str]]:
    """Return one to three turns, with or without a system prompt and a trace."""
    messages = [{"role": "system", "content": draw(contents)}] if draw(st.booleans()) else []
    for _ in range(draw(st.integers(1, 3))):
        answer = draw(contents)
        if draw(st.integers(0, 4)) == 0:
            answer = f"<think>\n{draw(texts).strip()}\n</think>\n\n{answer}"
        messages += [{"role": "user", "content": draw(contents)}, {"role": "assistant", "content": answer}]
    return messages


@lru_cache(maxsize=1)
def _tiny() -> Any:
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens([AddedToken(text, special=True, normalized=False) for text in _SPECIAL])
    tokenizer.bos_token = "<|bos|>"
    return tokenizer


@pytest.fixture(scope="module")
def sentencepiece(tokenizers: RealTokenizers) -> Any:
    """Return Mistral's vocabulary with the templates' tokens; it writes a space before a text's first word."""
    tokenizer = tokenizers.load("mistral v3")
    tokenizer.add_tokens([AddedToken(text, special=True, normalized=False) for text in _SPECIAL])
    tokenizer.bos_token = "<|bos|>"
    return tokenizer


def squeezed(text: str) -> str:
    return "".join(unicodedata.normalize("NFC", text.replace("\u2581", " ")).split())


def check(tokenizer: Any, template: Parts, messages: list[dict[str, str]]) -> None:
    """Check every property of one conversation with one template."""
    tokenizer.chat_template = template.source
    masker = Masker(ChatTemplate(tokenizer), 4096, [tokenizer.convert_tokens_to_ids("<|end|>")])
    conversation = parse_conversation({"messages": messages}, "Keep")
    (outcome,) = masker.examples([conversation])
    assert repr(masker.examples([conversation])) == repr([outcome])
    if isinstance(outcome, RowRejected):
        if outcome.reason is RowReason.CONTROL_TOKEN_IN_CONTENT:
            assert any(MARK in message["content"] for message in messages), outcome
            return
        allowed = {RowReason.CONTENT_NOT_RENDERED, RowReason.TEMPLATE_REFUSED, RowReason.MASK_UNPROVABLE}
        assert outcome.reason in allowed
        assert not template.writes_all_of(messages), outcome
        return
    runs = [run for example in outcome for run in runs_of(example)]
    turns = conversation.assistant_turns
    assert len(runs) == len(turns)
    for (before, learned), index in zip(runs, turns, strict=True):
        served = tokenizer.apply_chat_template(
            conversation.messages[:index], add_generation_prompt=True, tokenize=False
        )
        assert before == tokenizer(served, add_special_tokens=False)["input_ids"]
        spelled = squeezed(tokenizer.decode(learned))
        answer = squeezed(conversation.messages[index]["content"])
        header = "" if template.prompts else squeezed(template.answer_header)
        start = header + squeezed(template.lead) + answer
        ends = {squeezed(text) for text in ("<|end|>", tokenizer.eos_token)}
        assert spelled.startswith(start)
        assert spelled[len(start) :] in ends


def runs_of(example: Example) -> list[tuple[list[int], list[int]]]:
    """Return (ids before, learned ids) of each run of labels."""
    runs = []
    for start, label in enumerate(example.labels):
        if label != -100 and example.labels[start - 1] == -100:
            end = next((i for i in range(start, len(example.labels)) if example.labels[i] == -100), None)
            runs.append((example.input_ids[:start], example.labels[start:end]))
    return runs


@_SETTINGS
@given(template=parts, messages=conversations())
def test_random_templates_with_a_byte_level_vocabulary(
    template: Parts, messages: list[dict[str, str]]
) -> None:
    check(_tiny(), template, messages)


@pytest.mark.slow
@_SETTINGS
@given(template=parts, messages=conversations())
def test_random_templates_with_a_sentencepiece_vocabulary(
    sentencepiece: Any, template: Parts, messages: list[dict[str, str]]
) -> None:
    check(sentencepiece, template, messages)
