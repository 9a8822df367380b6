"""Learns with canary conversations what a chat template writes around an assistant's answer.

No template is known by name here. Conversations of unmistakable words (sentinels) are rendered once per tokenizer,
template and arguments. The text around these words comes from the template itself.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

from finetune_trainer.data.masking.alignment import shared_beginning
from finetune_trainer.data.masking.continuation import continuation
from finetune_trainer.data.masking.endings import Endings, Surroundings, learn_endings, surroundings
from finetune_trainer.data.masking.markup import Markup
from finetune_trainer.data.masking.reasoning import ReasoningTags
from finetune_trainer.data.masking.sentinels import canary_call, canary_result, sentinel
from finetune_trainer.data.masking.traces import TraceLearner
from finetune_trainer.data.rows.rejection import RowRejected
from finetune_trainer.errors import Reason, StageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from finetune_trainer.data.chat_template.template import ChatTemplate
    from finetune_trainer.data.conversations.conversation import Conversation


@dataclass(frozen=True)
class Context:
    """The tools that canary conversations offer; `system` is True if they begin with a system prompt."""

    tools: Any = None
    system: bool = False

    @property
    def lead(self) -> list[dict[str, Any]]:
        """The messages before the canary's question."""
        return [{"role": "system", "content": sentinel(30)}] if self.system else []


def contexts_of(samples: Iterable[Conversation], most: int = 8) -> list[Context]:
    """Return the different contexts of the first conversations, at most `most`."""
    found: list[Context] = []
    for sample in islice(samples, 64):
        system = sample.messages[0]["role"] in {"system", "developer"}
        for context in (Context(sample.tools, system), Context(sample.tools), Context(None, system)):
            if context not in [*found, Context()]:
                found.append(context)
    return found[:most]


@dataclass(frozen=True)
class Grammar:
    """The text and tokens around an answer.

    `generation_prompt` is the text that the template adds to prompt an answer, empty if it cannot be determined.
    `prefix` and `suffix` surround a plain answer after the served prompt; `prefix` is None if it is not known.
    `reasoning_prefix` and `reasoning_end` surround a reasoning trace if the template renders one. `inline_is_doubled` is
    True if the template writes a second block around a trace in the content. `trims` is True if the
    template strips answers. `headers` is markup that opens or closes a message.
    """

    endings: Endings
    tags: ReasoningTags
    prefix: str | None
    suffix: str
    reasoning_prefix: str | None
    reasoning_end: str
    reasoning_is_plain_text: bool
    inline_is_doubled: bool
    generation_prompt: str
    trims: bool
    headers: frozenset[str]

    @property
    def stop_tokens(self) -> frozenset[int]:
        """Ids of the tokens that end a turn."""
        return self.endings.tokens

    @property
    def stop_texts(self) -> tuple[str, ...]:
        """Texts of the tokens that end a turn."""
        return self.endings.texts

    def continuation(self, prompt: str, full: str, *, reasoning: bool) -> str | None:
        """Return the text that continues the served prompt as the rendered conversation does.

        `reasoning` is True if the answer has a trace. See `continuation` in the module of this name.
        """
        return continuation(self.tags, prompt, full, end=self.reasoning_end, reasoning=reasoning)

    def opens_twice(self, text: str) -> bool:
        """Return True if text between a prompt and an answer opens or closes a reasoning block twice."""
        markers = [marker.text for marker in self.tags.markup.find(text)]
        return any(markers.count(tag) > 1 for tag in markers if self.tags.is_reasoning(tag))

    def close(self, opened: str) -> str | None:
        """Return the text between a trace and the answer, if a prompt opened the block with `opened`.

        Return None if no tag is known that closes it.
        """
        closing = self.tags.closing_tag(opened)
        if closing is None:
            return None
        return self.reasoning_end if closing in self.reasoning_end else f"\n{closing}\n\n"


def learn_grammar(
    template: ChatTemplate, eos_ids: Iterable[int] = (), context: Context | None = None
) -> Grammar:
    """Render the canary conversations and learn from them.

    `eos_ids` are the end tokens of the generation config. Raises StageError(ChatTemplateUnprovable) if the template
    cannot render a question and its answer or leaves one out, or if no token could end a turn.
    """
    context = context or Context()
    tools = context.tools
    user, answer, second_user = sentinel(1), sentinel(2), sentinel(3)
    question = [*context.lead, {"role": "user", "content": user}]
    answered = {"role": "assistant", "content": answer}
    following = {"role": "user", "content": second_user}
    try:
        prompt = template.render(question, tools, generation=True)
        full = template.render([*question, answered], tools, generation=False)
    except RowRejected as error:
        raise _unprovable(
            template, f"it cannot render one question and its answer: {error.detail}"
        ) from error
    around = surroundings(template, question, answered, answer, following, tools)
    if user not in prompt or around is None or user in around.last:
        raise _unprovable(
            template, "it leaves out the question or the answer of a conversation with one turn"
        )
    markup = Markup(template)
    first = _first_marker(template, markup, prompt[: prompt.index(user)])
    endings = learn_endings(template, markup, around, _around_call(template, question, tools), first, eos_ids)
    if endings is None:
        raise _unprovable(template, "neither template nor tokenizer names a token that ends a turn")
    structural = _structural_markers(template, markup, tools) | set(endings.texts)
    reasoning = TraceLearner(
        template, ReasoningTags(markup, structural=frozenset(structural)), question, tools
    )
    reasoning.learn(prompt, full, answer)
    generation_prompt = _generation_prompt(template, question, prompt, tools)
    prefix = _prefix(reasoning, prompt, full, user, answer, generation_prompt)
    cut = endings.cut(answer + around.last, len(answer)) or ""
    return Grammar(
        endings=endings,
        tags=reasoning.tags,
        prefix=prefix,
        suffix=cut.removeprefix(answer),
        reasoning_prefix=reasoning.prefix,
        reasoning_end=_end_of_trace(reasoning, prefix),
        reasoning_is_plain_text=reasoning.is_plain_text(prompt),
        inline_is_doubled=reasoning.inline_is_doubled,
        generation_prompt=generation_prompt,
        trims=_trims(template, question, answer, tools),
        headers=_headers(template, reasoning.tags, tools),
    )


def _unprovable(template: ChatTemplate, what: str) -> StageError:
    return StageError(
        Reason.CHAT_TEMPLATE_UNPROVABLE,
        f"the chat template must render every message and end each answer, but {what}; {template.remedy}",
    )


def _around_call(template: ChatTemplate, question: list[dict[str, Any]], tools: Any) -> Surroundings | None:
    word = sentinel(6)
    return surroundings(template, question, canary_call(word), word, canary_result(sentinel(12)), tools)


def _first_marker(template: ChatTemplate, markup: Markup, text: str) -> str | None:
    return next((marker.text for marker in markup.find(text) if marker.text != template.bos_token), None)


def _structural_markers(template: ChatTemplate, markup: Markup, tools: Any) -> set[str]:
    """Return the markers next to messages of users and the system, but not those in the prose of a system prompt."""
    found: set[str] = set()
    for roles in (("user",), ("system", "user")):
        messages = [{"role": role, "content": sentinel(20 + number)} for number, role in enumerate(roles)]
        try:
            rendered = template.render(messages, tools, generation=False)
            prompted = template.render(messages, tools, generation=True)
        except RowRejected:
            continue
        pieces = re.split(r"zqx\d{4}vkj", rendered)
        if rendered == prompted:  # the template always prompts, or never does
            pieces = pieces[:-1]
        for piece in pieces:
            found.update(marker.text for marker in markup.find(piece[:_NEXT_TO]))
            found.update(marker.text for marker in markup.find(piece[-_NEXT_TO:]))
    return found


def _prefix(
    reasoning: TraceLearner, prompt: str, full: str, question: str, answer: str, generation_prompt: str
) -> str | None:
    """Return the text that the model writes between the served prompt and a plain answer; None if it is not known."""
    tags, end = reasoning.tags, reasoning.end
    before = full[: full.rindex(answer)]
    behind = before.rindex(question) + len(question)
    # A template that rewrites history still writes the same text between a question and its answer.
    served, header = prompt[prompt.rindex(question) + len(question) :], before[behind:]
    for one, other in ((prompt, full), (served, full[behind:])):
        way = continuation(tags, one, other, end=end, reasoning=False)
        if way is not None and answer in way:
            return way[: way.rindex(answer)]
    if generation_prompt and generation_prompt in before:
        return before[before.rindex(generation_prompt) + len(generation_prompt) :]
    return "" if _only_inserts(tags.markup, served, header) else None


def _end_of_trace(reasoning: TraceLearner, prefix: str | None) -> str:
    """Return the text between a trace and an answer.

    A template that writes no trace may still close the block that its prompt opens, before an answer without one.
    """
    closes = prefix is not None and any(
        prefix.lstrip().startswith(tag) for tag in ("</think>", *reasoning.tags.closing)
    )
    return str(prefix) if closes and not reasoning.is_known else reasoning.end


def _only_inserts(markup: Markup, served: str, header: str) -> bool:
    """Return True if the prompt's header is that of the conversation with text inserted in its middle.

    Such text, for instance a length to keep, says how to answer. It opens no block, because it has no marker.
    """
    same = shared_beginning(served, header)
    rest = header[same:]
    if not same or not rest or not served[same:].endswith(rest):
        return False
    return not markup.find(served[same : len(served) - len(rest)])


def _generation_prompt(
    template: ChatTemplate, question: list[dict[str, Any]], prompt: str, tools: Any
) -> str:
    without = template.render(question, tools, generation=False)
    return prompt[len(without) :] if prompt.startswith(without) else ""


def _trims(template: ChatTemplate, question: list[dict[str, Any]], answer: str, tools: Any) -> bool:
    full = template.render(
        [*question, {"role": "assistant", "content": f"  {answer}  "}], tools, generation=False
    )
    return f"  {answer}  " not in full


_NEXT_TO = 40  # characters
_HEADER = re.compile(r"<{1,2}[^<>\s]{1,40}>{1,2}|\[[^\[\]\s]{1,40}\]|#{2,} ?[A-Za-z ]{2,30}:")


def _headers(template: ChatTemplate, tags: ReasoningTags, tools: Any) -> frozenset[str]:
    """Return the markup that the template writes around messages of each role that it accepts."""
    words: set[str] = set()
    roles: list[Sequence[str]] = [("user", "assistant", "user", "assistant"), ("system", "user", "assistant")]
    for sequence in roles:
        messages = [{"role": role, "content": sentinel(10 + number)} for number, role in enumerate(sequence)]
        try:
            rendered = template.render(messages, tools, generation=False)
        except RowRejected:
            continue  # the template may not support system messages; rows that have one are rejected with a reason
        # Only text next to a message counts: text further away may be prose of a default system prompt.
        for literal in re.split(r"zqx\d{4}vkj", rendered):
            words.update(_HEADER.findall(literal[:80] + " " + literal[-80:]))
    return frozenset(word for word in words if not tags.is_reasoning(word) and len(word) >= 4)
