"""Learns from sentinels what a template writes around a reasoning trace."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from finetune_trainer.data.masking.alignment import shared_despite_space, text_behind
from finetune_trainer.data.masking.continuation import continuation
from finetune_trainer.data.masking.reasoning import (
    DEFAULT_END,
    DEFAULT_PREFIX,
    PromptTail,
    ReasoningTags,
    partners,
)
from finetune_trainer.data.masking.sentinels import sentinel
from finetune_trainer.data.rows.rejection import RowRejected

if TYPE_CHECKING:
    from finetune_trainer.data.chat_template.template import ChatTemplate


class TraceLearner:
    """Learns the text around a reasoning trace."""

    def __init__(
        self, template: ChatTemplate, tags: ReasoningTags, question: list[dict[str, Any]], tools: Any
    ) -> None:
        self.tags = tags
        self.prefix: str | None = None
        self.end = DEFAULT_END
        self.is_known = False
        self.inline_is_doubled = False
        self._template = template
        self._question = question
        self._tools = tools

    def learn(self, prompt: str, full: str, answer: str) -> None:
        """Learn from a trace in each form, and from what the prompt has and a plain answer lacks."""
        trace, word = sentinel(4), sentinel(5)
        candidates: list[dict[str, Any]] = [
            {"role": "assistant", "content": word, "reasoning_content": trace},
            {"role": "assistant", "content": f"{DEFAULT_PREFIX}{trace}{DEFAULT_END}{word}"},
        ]
        for message in candidates:
            try:
                rendered = self._template.render([*self._question, message], self._tools, generation=False)
            except RowRejected:
                continue
            if trace not in rendered or word not in rendered or rendered.index(trace) > rendered.rindex(word):
                continue
            before = rendered[: rendered.index(trace)]
            doubled = "reasoning_content" not in message and self._is_doubled(prompt, before)
            if self.is_known:
                self.inline_is_doubled = doubled
                break
            if doubled:
                # The template writes an empty block, and the content brings its own.
                self.prefix = DEFAULT_PREFIX
                break
            self.is_known = True
            self.end = rendered[rendered.index(trace) + len(trace) : rendered.rindex(word)]
            self._learn_opening(prompt, before)
        self._learn_missing(prompt, full, answer)

    def missing(self, prompt: str, full: str) -> PromptTail | None:
        """Return the tags at the prompt's end that the conversation lacks; None if it lacks none."""
        if text_behind(prompt, full) is not None:
            return None
        return self.tags.tail(prompt) or self.tags.tail(prompt, self._same(prompt, full))

    def is_plain_text(self, prompt: str) -> bool:
        """Return True if the template ignores traces and would write them as ordinary text."""
        tail = self.tags.tail(prompt)
        if tail is not None:
            return tail.opened is None
        trace, answer = sentinel(7), sentinel(8)
        block = f"{DEFAULT_PREFIX}{trace}{DEFAULT_END}"
        following = {"role": "user", "content": sentinel(9)}
        as_field = {"role": "assistant", "content": answer, "reasoning_content": trace}
        inline = {"role": "assistant", "content": block + answer}
        try:
            if trace in self._template.render([*self._question, as_field], self._tools, generation=False):
                return False
            history = [*self._question, inline, following]
            return block in self._template.render(history, self._tools, generation=True)
        except RowRejected:
            return False

    def _learn_opening(self, prompt: str, before: str) -> None:
        """Learn the text between the header and the trace, and the tags around the trace."""
        markup = self.tags.markup
        closing = next((marker.text for marker in markup.find(self.end)), None)
        tail = self.tags.tail(prompt)
        opened = text_behind(prompt, before)
        if opened is None:
            # The prompt closes an empty block, and a trace opens another one.
            loose = tail or self.tags.tail(prompt, self._same(prompt, before))
            opened = None if loose is None else text_behind(prompt[: loose.starts[0]], before)
        self.prefix = opened
        tags = [marker.text for marker in markup.find(opened or "")]
        if not tags and opened is not None:
            # The prompt has opened the block already.
            tags = [marker.text for marker in markup.at_end(prompt) if marker.end == len(prompt.rstrip())]
            tags = [tag for tag in tags if closing in partners(tag)]
        if len(tags) == 1 and closing is not None:
            self._remember({tags[0]}, {closing})

    def _learn_missing(self, prompt: str, full: str, answer: str) -> None:
        """Learn the tags that only the prompt has, if a plain answer proves that they are no header."""
        tail = self.missing(prompt, full)
        if tail is None or self.tags.tail(prompt) is not None:
            return
        end = DEFAULT_END if self.prefix is None else self.end
        if continuation(self.tags, prompt, full, end=end, reasoning=False, tail=tail) is None:
            return
        tags = [marker.text for marker in self.tags.markup.find(prompt[tail.starts[0] :])]
        header = prompt[: tail.starts[0]]
        if answer in header:
            return
        if tail.opened is None:
            self._remember(set(tags[:-1]), {tags[-1]})
        elif self.tags.closing_tag(tail.opened) is not None:
            self._remember({tags[-1]}, {str(self.tags.closing_tag(tail.opened))})

    def _is_doubled(self, prompt: str, before: str) -> bool:
        """Return True if the template writes a block of its own before a trace in the content."""
        header = text_behind(prompt, before)
        return header is not None and any(tag in header for tag in self.tags.closing or {DEFAULT_END.strip()})

    def _same(self, prompt: str, full: str) -> int:
        """Return the length of the beginning that both texts share, without a marker that only begins alike."""
        same = shared_despite_space(prompt, full)
        split = (m.start for m in self.tags.markup.at_end(prompt) if m.start < same < m.end)
        return next(split, same)

    def _remember(self, opening: set[str], closing: set[str]) -> None:
        tags = self.tags
        opening, closing = opening - tags.structural, closing - tags.structural
        if closing and not opening & closing:
            self.tags = ReasoningTags(
                tags.markup, tags.opening | opening, tags.closing | closing, tags.structural
            )
