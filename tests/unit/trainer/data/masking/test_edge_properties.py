"""Random templates with tags around answers: exactly the text between the served prompt and its end is learned."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import hypothesis.strategies as st
from finetune_trainer.data.chat_template.template import ChatTemplate
from finetune_trainer.data.conversations.conversation import Conversation
from finetune_trainer.data.masking.masking import Masker
from hypothesis import HealthCheck, given, settings
from tokenizers import AddedToken

from tests.support.tiny_models import tiny_tokenizer

_TAGS = {
    "<think>": "</think>",
    "[THINK]": "[/THINK]",
    "<|START_THINKING|>": "<|END_THINKING|>",
    "<|channel>thought": "<channel|>",
    "<plan>": "</plan>",
}
_PLAIN = ("<think>", "</think>", "<plan>", "</plan>", "</answer>", "<answer>")
_SPECIAL = (
    "<|user|>", "<|bot|>", "<|end|>", "<|more|>", "<|eos|>", "[THINK]", "[/THINK]", "<|START_THINKING|>",
    "<|END_THINKING|>", "<|channel>", "<channel|>", "<|START_RESPONSE|>", "<|END_RESPONSE|>",
)  # fmt: skip


@dataclass(frozen=True)
class Edges:
    """A template made of the edges of real answers.

    `prompted` and `written` say which tags of the reasoning block the prompt and the conversation have. `lead` and `tail`
    surround the answer, `end` is what the template writes behind it, and `header_end` closes the answer's header. With
    `always`, the header also stands behind every conversation. `loose` adds white space before the prompt's header only.
    """

    opening: str
    prompted: str
    written: str
    lead: str
    tail: str
    end: str
    eos: str
    header_end: str
    always: bool
    loose: bool

    def block(self, part: str) -> str:
        """Return the part of the reasoning block with this name."""
        closing = _TAGS[self.opening]
        return {
            "none": "", "opened": f"{self.opening}\n", "closing": closing,
            "closed": f"{self.opening}\n\n{closing}\n\n",
        }[part]  # fmt: skip

    @property
    def source(self) -> str:
        """Jinja text."""
        header = f"<|bot|>{self.header_end}"
        prompt = ("\n" if self.loose else "") + header + self.block(self.prompted)
        answer = header + self.block(self.written) + self.lead
        return (
            "{% for m in messages %}{% if m.role == 'user' %}{{ '<|user|>\n' + m.content + '<|end|>' }}"
            "{% elif m.role == 'assistant' %}{{ " + repr(answer) + " + m.content + " + repr(self.tail + self.end) + " }}"
            "{% endif %}{% endfor %}"
            + ("{{ " if self.always else "{% if add_generation_prompt %}{{ ") + repr(prompt) + " }}"
            + ("" if self.always else "{% endif %}")
        )  # fmt: skip

    def right(self, content: str) -> str:
        """Return what must be learned, without white space."""
        begin = {"opened": _TAGS[self.opening], "none": self.block(self.written)}.get(self.prompted, "")
        return squeezed(begin + self.lead + content + self.tail + self._stop)

    @property
    def _stop(self) -> str:
        if self.eos in self.end:
            return self.end[: self.end.index(self.eos) + len(self.eos)]
        if "<|end|>" in self.end:
            return self.end.rstrip()
        return "" if self.tail == "<|END_RESPONSE|>" else self.eos


edges = st.builds(
    Edges,
    opening=st.sampled_from(sorted(_TAGS)),
    prompted=st.sampled_from(["none", "none", "opened", "closed", "closing"]),
    written=st.sampled_from(["none", "none", "closed", "closing"]),
    lead=st.sampled_from(["", "", "<|START_RESPONSE|>", "<answer>", " "]),
    tail=st.sampled_from(["", "", "<|END_RESPONSE|>", "</answer>", "\n"]),
    end=st.sampled_from(["<|end|>\n", "<|end|>", "<|end|><|more|>\n", "", "\n\n"]),
    eos=st.sampled_from(["<|end|>", "<|eos|>"]),
    header_end=st.sampled_from(["", "\n", " says:\n"]),
    always=st.booleans(),
    loose=st.booleans(),
)
_WORDS = st.sampled_from(
    ["yes", "no\n\nmore", "it is 4", "a <b> c", "thinking", "user", "[x]", "end", "...", "é 你好"]
)
contents = st.lists(_WORDS, min_size=1, max_size=3).map(" ".join)


def squeezed(text: str) -> str:
    return "".join(text.split())


@lru_cache(maxsize=2)
def vocabulary(*, line_breaks: bool) -> Any:
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens([AddedToken(text, special=True, normalized=False) for text in _SPECIAL])
    plain = (*_PLAIN, *(("\n", "\n\n") if line_breaks else ()))
    tokenizer.add_tokens([AddedToken(text, special=False, normalized=False) for text in plain])
    return tokenizer


@settings(max_examples=300, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(template=edges, answers=st.lists(contents, min_size=1, max_size=2), line_breaks=st.booleans())
def test_exactly_what_the_model_must_write_is_learned(
    template: Edges, answers: list[str], *, line_breaks: bool
) -> None:
    tokenizer = vocabulary(line_breaks=line_breaks)
    tokenizer.eos_token = template.eos
    masker = Masker(ChatTemplate(tokenizer, template.source), 4096)
    messages = [
        message
        for number, answer in enumerate(answers)
        for message in (
            {"role": "user", "content": f"question {number}"},
            {"role": "assistant", "content": answer},
        )
    ]
    (outcome,) = masker.examples([Conversation(messages)])
    assert isinstance(outcome, list), outcome
    found = []
    for example in outcome:
        for start, label in enumerate(example.labels):
            if label == -100 or example.labels[start - 1] != -100:
                continue
            stop = next((i for i in range(start, len(example.labels)) if example.labels[i] == -100), None)
            found.append(
                (tokenizer.decode(example.input_ids[:start]), tokenizer.decode(example.labels[start:stop]))
            )
    assert [squeezed(learned) for _, learned in found] == [template.right(answer) for answer in answers]
    for (before, _), turn in zip(found, range(len(answers)), strict=True):
        served = masker.template.render(messages[: 2 * turn + 1], None, generation=True)
        assert before == served
