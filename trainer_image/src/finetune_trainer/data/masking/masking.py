"""Builds token ids and labels so that every assistant turn is trained exactly as it will be served.

The ids of a turn are the ids of the served prompt followed by those of the answer. Only the answer has labels. Turns
share one example if each is a literal beginning of the next; otherwise each becomes a separate example. A row that
cannot be proven is rejected: there is no fallback that labels more.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import sys
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from finetune_trainer.data.chat_template.template import ChatTemplate, ControlText
from finetune_trainer.data.conversations.conversation import Conversation
from finetune_trainer.data.masking.escaping import MARK, encode_marked, require_plain, split_mentions
from finetune_trainer.data.masking.example import IGNORED, Example
from finetune_trainer.data.masking.grammar import Context, Grammar, contexts_of, learn_grammar
from finetune_trainer.data.masking.invariants import require_example
from finetune_trainer.data.masking.sentinels import canary_call, canary_result, sentinel
from finetune_trainer.data.masking.turns import Turn, TurnWriter
from finetune_trainer.data.rows.rejection import RowReason, RowRejected
from finetune_trainer.errors import Reason, StageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

ControlTokens = Literal["Reject", "Escape"]

_CANARIES = (
    ("user", "assistant"),
    ("system", "user", "assistant"),
    ("system", "user", "assistant", "user", "assistant"),
    ("user", "call", "tool", "assistant"),
)


@dataclass
class _EncodedTurn:
    """A turn as ids; `text` is their rendered text."""

    prompt: list[int]
    answer: list[int]
    text: str
    parts: tuple[str, ...]


@dataclass
class _Draft:
    """An example under construction; `runs` are the (start, end) of its answers."""

    ids: list[int]
    labels: list[int]
    runs: list[tuple[int, int]]
    turns: list[_EncodedTurn]
    dropped_turns: int = 0

    def add(self, turn: _EncodedTurn) -> None:
        """Add a turn whose prompt begins with the ids of this example."""
        start = len(turn.prompt)
        self.labels += [IGNORED] * (start - len(self.ids)) + turn.answer
        self.ids = turn.prompt + turn.answer
        self.runs.append((start, len(self.ids)))
        self.turns.append(turn)


class Masker:
    """Makes proven examples from conversations for one template and one maximum length in tokens."""

    def __init__(
        self,
        template: ChatTemplate,
        maximum_length: int,
        eos_ids: Iterable[int] = (),
        samples: Iterable[Conversation] = (),
        control_tokens: ControlTokens = "Reject",
    ) -> None:
        """Learn the template's grammar.

        `control_tokens` decides about content that mentions a control token: its row is rejected, or the mention is
        tokenized as plain text.

        Some templates render no conversation without tools or a system prompt. Then the canary gets what the `samples`
        have. Raises StageError(ChatTemplateUnprovable).
        """
        self.template = template
        self.maximum_length = maximum_length
        self._control_tokens = control_tokens
        ends = tuple(eos_ids)
        try:
            self._learn(ends, Context())
        except StageError as error:
            for context in contexts_of(samples):
                with contextlib.suppress(StageError):
                    self._learn(ends, context)
                    return
            raise error from None

    def _learn(self, eos_ids: Iterable[int], context: Context) -> None:
        self.grammar: Grammar = learn_grammar(self.template, eos_ids, context)
        self._writer = TurnWriter(self.template, self.grammar)
        self._control = ControlText(
            self.template, self.grammar.stop_texts, self.grammar.headers, self.grammar.tags.is_reasoning
        )
        self._cut_texts(context)
        self._require_canary(context)

    def examples(self, conversations: Sequence[Conversation]) -> list[list[Example] | RowRejected]:
        """Return for each conversation its examples in order, or the reason for its rejection.

        One call encodes the texts of all conversations, so that the tokenizer can use all cores.
        """
        results: list[list[Example] | RowRejected] = []
        written: list[tuple[int, Conversation, list[Turn]]] = []
        for position, conversation in enumerate(conversations):
            try:
                spoken = self._without_control_tokens(conversation)
                turns = [self._writer.turn(spoken, index) for index in spoken.assistant_turns]
            except RowRejected as rejection:
                results.append(rejection)
                continue
            results.append([])
            written.append((position, spoken, turns))
        texts = [
            text
            for _, _, turns in written
            for turn in turns
            for text in (turn.prompt, turn.prompt + turn.answer)
        ]
        ids = iter(self.template.encode([text for text in texts if MARK not in text]) if texts else ())
        for position, conversation, turns in written:
            # All ids of a conversation are taken before one of its turns can be rejected.
            pairs = [
                [None if MARK in text else next(ids) for text in (turn.prompt, turn.prompt + turn.answer)]
                for turn in turns
            ]
            try:
                encoded = [
                    self._split(turn, *self._filled(turn, pair))
                    for turn, pair in zip(turns, pairs, strict=True)
                ]
                results[position] = self._assemble(conversation, encoded)
            except RowRejected as rejection:
                results[position] = rejection
        return results

    @property
    def reasoning_is_plain_text(self) -> bool:
        """True if the template ignores `<think>` traces and would write them as ordinary text."""
        return self.grammar.reasoning_is_plain_text

    def _cut_texts(self, context: Context) -> None:
        """Let the tokenizer encode the common parts of turns only once."""
        samples = []
        for roles in _CANARIES:
            messages = [_canary_message(role, position) for position, role in enumerate(roles)]
            try:
                samples.append(self.template.render(messages, context.tools, generation=True))
            except RowRejected:
                continue  # the template does not support a role
        written = "".join(samples)
        tokens = [token for token in self.template.added_tokens.values() if token and token in written]
        self.template.encoder.cut_at([*tokens, *self.grammar.stop_texts], samples)

    def _filled(self, turn: Turn, pair: list[list[int] | None]) -> tuple[list[int], list[int]]:
        """Return the ids of a turn's prompt and of the whole turn; those of marked texts are None in `pair`."""
        prompt, joint = pair
        return (
            self._encode_marked(turn.prompt) if prompt is None else prompt,
            self._encode_marked(turn.prompt + turn.answer) if joint is None else joint,
        )

    def _encode_marked(self, text: str) -> list[int]:
        return encode_marked(self.template, text, self.grammar.stop_texts[0])

    def _encode(self, texts: Sequence[str]) -> list[list[int]]:
        if not any(MARK in text for text in texts):
            return self.template.encode(texts)
        return [self._encode_marked(text) for text in texts]

    def _without_control_tokens(self, conversation: Conversation) -> Conversation:
        """Return the conversation with its mentions of control tokens split, if they may be escaped.

        Raises RowRejected(ControlTokenInContent) for a mention that remains, and for content with the mark itself.
        """
        for index, message in enumerate(conversation.messages):
            if any(MARK in text for text in _texts(message)):
                raise RowRejected(
                    RowReason.CONTROL_TOKEN_IN_CONTENT,
                    f"messages[{index}]",
                    "the text contains the characters U+E0F7 and U+E0F8 together, which mark escaped control tokens",
                )
        if self._control_tokens == "Escape":
            conversation = dataclasses.replace(
                conversation, messages=[self._escaped(message) for message in conversation.messages]
            )
        self._reject_control_tokens(conversation)
        return conversation

    def _escaped(self, message: dict[str, Any]) -> dict[str, Any]:
        find = partial(self._control.find, answer=message["role"] == "assistant")
        tokens = self.grammar.tags.markup.control.keys()
        return {
            key: value if key == "role" else split_mentions(value, find, tokens)
            for key, value in message.items()
        }

    def _reject_control_tokens(self, conversation: Conversation) -> None:
        for index, message in enumerate(conversation.messages):
            answer = message["role"] == "assistant"
            for key, value in message.items():
                if key == "role":
                    continue
                for text in _texts(value):
                    token = self._control.find(text, answer=answer)
                    if token is not None:
                        raise RowRejected(
                            RowReason.CONTROL_TOKEN_IN_CONTENT,
                            f"messages[{index}].{key}",
                            f"the text contains the control token {token!r}",
                        )

    def _split(self, turn: Turn, prompt: list[int], joint: list[int]) -> _EncodedTurn:
        """Return the turn with answer ids that follow exactly the ids of the served prompt.

        If prompt and answer merge into one token at their border, the answer is encoded alone or after a stop token,
        whichever decodes to the same text.
        """
        text = turn.prompt + turn.answer
        if MARK in text:
            require_plain(joint, text, self.grammar.tags.markup.control)
        if joint[: len(prompt)] == prompt:
            answer = joint[len(prompt) :]
        else:
            answer = self._encode_alone(turn, prompt, self.template.decode(joint))
        if not answer or answer[-1] not in self.grammar.stop_tokens:
            raise RowRejected(
                RowReason.MASK_UNPROVABLE, "messages", "the answer does not end with a stop token"
            )
        if not self.grammar.stop_tokens.isdisjoint(answer[:-1]):
            raise RowRejected(
                RowReason.MASK_UNPROVABLE,
                "messages",
                "the template writes an end token inside this answer, so a server would stop before its end",
            )
        return _EncodedTurn(prompt, answer, text, turn.parts)

    def _encode_alone(self, turn: Turn, prompt: list[int], wanted: str) -> list[int]:
        alone, anchor, anchored = self._encode(
            [turn.answer, self.grammar.stop_texts[0], self.grammar.stop_texts[0] + turn.answer]
        )
        candidates = [alone]
        if anchored[: len(anchor)] == anchor:
            candidates.append(anchored[len(anchor) :])
        for answer in candidates:
            if self.template.decode(prompt + answer) == wanted:
                return answer
        raise RowRejected(
            RowReason.MASK_UNPROVABLE,
            "messages",
            "prompt and answer merge into one token and cannot be separated",
        )

    def _assemble(self, conversation: Conversation, turns: list[_EncodedTurn]) -> list[Example]:
        """Join turns if each is a literal beginning of the next and the whole fits; check every example."""
        drafts: list[_Draft] = []
        for number, turn in enumerate(turns):
            if len(turn.prompt) + len(turn.answer) > self.maximum_length:
                short, dropped = self._shortened(conversation, conversation.assistant_turns[number])
                drafts.append(_Draft([], [], [], [], dropped))
                drafts[-1].add(short)
                continue
            last = drafts[-1] if drafts else None
            # Two answers with no token between them would be one run of labels.
            if last is None or len(turn.prompt) <= len(last.ids) or turn.prompt[: len(last.ids)] != last.ids:
                last = _Draft([], [], [], [])
                drafts.append(last)
            last.add(turn)
        examples = []
        for draft in drafts:
            text = draft.turns[-1].text
            example = Example(
                draft.ids, draft.labels, dropped_turns=draft.dropped_turns, escaped=MARK in text
            )
            require_example(
                self.template,
                self.grammar,
                example,
                runs=draft.runs,
                text=text,
                answers=[turn.parts for turn in draft.turns],
            )
            examples.append(example)
        return examples

    def _shortened(self, conversation: Conversation, index: int) -> tuple[_EncodedTurn, int]:
        """Drop whole earlier turns, oldest first, until the turn fits; return it and the number of dropped turns."""
        messages = conversation.messages[: index + 1]
        head = [message for message in messages[:1] if message["role"] in {"system", "developer"}]
        starts = [i for i, message in enumerate(messages) if message["role"] == "user" and i > len(head)]
        for dropped, start in enumerate(starts, start=1):
            kept = Conversation([*head, *messages[start:]], conversation.tools)
            turn = self._writer.turn(kept, len(kept.messages) - 1)
            encoded = self._split(turn, *self._encode([turn.prompt, turn.prompt + turn.answer]))
            if len(encoded.prompt) + len(encoded.answer) <= self.maximum_length:
                return encoded, dropped
        raise RowRejected(
            RowReason.TOO_LONG,
            f"messages[{index}]",
            f"answer and prompt need more than {self.maximum_length} tokens even without earlier turns",
        )

    def _require_canary(self, context: Context) -> None:
        """Prove conversations of sentinels in every role before the first row.

        Raises StageError(ChatTemplateUnprovable) if not even one question and its answer can be proven, or if a word of
        another role gets a label. A role that the template rejects costs only the rows that have it.
        """
        remedy = self.template.remedy
        unlimited = copy.copy(self)
        unlimited.maximum_length = sys.maxsize
        for number, roles in enumerate(_CANARIES):
            messages = [_canary_message(role, position) for position, role in enumerate(roles)]
            (outcome,) = unlimited.examples([Conversation(messages, context.tools)])
            if isinstance(outcome, RowRejected):
                if number == (1 if context.system else 0):
                    raise StageError(
                        Reason.CHAT_TEMPLATE_UNPROVABLE,
                        "the chat template must make one question and its answer provable, "
                        f"found: {outcome.detail.removesuffix(f'; {remedy}')}; {remedy}",
                    )
                continue
            for example in outcome:
                learned = self.template.decode([label for label in example.labels if label != IGNORED])
                leaked = [
                    role
                    for position, role in enumerate(roles)
                    if role not in {"assistant", "call"} and sentinel(200 + position) in learned
                ]
                if leaked:
                    raise StageError(
                        Reason.CHAT_TEMPLATE_UNPROVABLE,
                        "only answers may be learned, but this chat template would teach text of the role "
                        f"{leaked[0]}; {remedy}",
                    )


def _canary_message(role: str, position: int) -> dict[str, Any]:
    word = sentinel(200 + position)
    if role == "call":
        return canary_call(word)
    return canary_result(word) if role == "tool" else {"role": role, "content": word}


def _texts(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        return [text for item in value.values() for text in _texts(item)]
    if isinstance(value, list):
        return [text for item in value for text in _texts(item)]
    return []
