"""Tells from a template's own text which tags open and close the reasoning of an answer.

A served prompt may open a reasoning block, close it, or open and close an empty one. The tags are those that the
template writes around a trace. A template that writes no trace shows them only in its prompts: there, a tag and its
partner make a closed block, and names decide about a tag that stands alone.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from finetune_trainer.data.masking.markup import Marker, Markup

DEFAULT_PREFIX, DEFAULT_END = "<think>\n", "\n</think>\n\n"
_NAME = re.compile(r"think|thought|reason|cot\b|scratch|reflect", re.IGNORECASE)
# A word belongs to the tag that it follows directly, as in `<|channel>thought`.
_BETWEEN = re.compile(r"[a-z_]{0,20}\s*\Z")
_CLOSES = re.compile(
    r"\A(?:</|\[/|<\|/|\u25c1/)|(?:\A|[^A-Za-z])(?:END|end|CLOSE|close)(?:[^A-Za-z]|\Z)|\A<[^|<>]+\|>\Z"
)
_PAIRS = (
    ("START", "END"),
    ("start", "end"),
    ("BEGIN", "END"),
    ("begin", "end"),
    ("OPEN", "CLOSE"),
    ("open", "close"),
)


@lru_cache(maxsize=1024)
def partners(tag: str) -> tuple[str, ...]:
    """Return the spellings of the tag that would close this one."""
    found = [tag.replace(start, end) for start, end in _PAIRS if start in tag]
    if tag.startswith("<|") and not tag.endswith("|>"):
        found.append(f"<{tag[2:-1]}|>")
    if tag.startswith("<|"):
        found.append(f"<|/{tag[2:]}")
    found.append(f"{tag[0]}/{tag[1:]}")
    return tuple(found)


class PromptTail(NamedTuple):
    """The reasoning tags at the end of a prompt.

    `starts` are the positions of the tags, and `texts` the tags. `opened` is the text of the block that is open at the
    end, from its tag on; None if the last block is closed.
    """

    starts: tuple[int, ...]
    texts: tuple[str, ...]
    opened: str | None


@dataclass(frozen=True)
class ReasoningTags:
    """The tags of one template; `opening` and `closing` are those that the template writes around a trace.

    `structural` are the markers around messages of other roles: they are never reasoning tags.
    """

    markup: Markup
    opening: frozenset[str] = frozenset()
    closing: frozenset[str] = frozenset()
    structural: frozenset[str] = frozenset()

    def tail(self, prompt: str, header: int | None = None) -> PromptTail | None:
        """Return the reasoning tags at the prompt's end, None if it ends with none.

        With `header`, every marker behind this position counts that is not structural: there, the prompt differs from
        the conversation, so its tags are known to be no header.
        """
        found: list[Marker] = []
        end = len(prompt)
        # Most prompts end with a header, and its last marker says so.
        markers = self.markup.at_end(prompt) if self._may_have_tail(prompt, header) else []
        while markers:
            marker = markers.pop()
            word = prompt[marker.end : end]
            if not _BETWEEN.match(word):
                break
            opener = self._opener(prompt, markers, marker) if self.closes(marker.text) else None
            loose = header is not None and marker.start >= header and marker.text not in self.structural
            if not loose and opener is None and not self.is_reasoning(marker.text, word):
                break
            found.insert(0, marker)
            end = marker.start
            if opener is not None:
                # Some prompts write words into the block that they close.
                markers = [other for other in markers if other.start < opener.start]
                found.insert(0, opener)
                end = opener.start
        if not found:
            return None
        starts, texts = zip(*((marker.start, marker.text) for marker in found), strict=True)
        return PromptTail(starts, texts, self._open_at_end(prompt, found))

    def is_reasoning(self, tag: str, word: str = "") -> bool:
        """Return True if a tag, with the word that follows it, opens or closes reasoning."""
        if tag in self.structural:
            return False
        if tag in self.opening or tag in self.closing:
            return True
        return bool(_NAME.search(tag) or _NAME.search(word)) or not self.closing.isdisjoint(partners(tag))

    def closing_tag(self, opened: str) -> str | None:
        """Return the tag that closes the block that begins with `opened`; None if no known tag does."""
        tag = self._tag(opened)
        candidates = partners(tag)
        learned = next((candidate for candidate in candidates if candidate in self.closing), None)
        if learned is None and tag in self.opening and len(self.closing) == 1:
            learned = next(iter(self.closing))
        return learned or self.markup.first_known(candidates)

    def without_leading(self, text: str, tail: PromptTail) -> str:
        """Return text without the tags at its beginning that the prompt has written already.

        A prompt that closed its block has written all of them, else only the opening one.
        """
        stripped = text.lstrip()
        end = behind = 0
        for marker in self.markup.find(stripped[:120]):
            known = marker.text in tail.texts or self.is_reasoning(marker.text)
            between = stripped[behind : marker.start]
            if not known or not (_BETWEEN.match(between) if behind else between == ""):
                break
            behind = marker.end
            closes = self.closes(marker.text)
            if tail.opened is not None:
                return text if closes else stripped[behind:].lstrip("\n")
            end = behind if closes else end
        return stripped[end:].lstrip("\n") if end else text

    def _may_have_tail(self, prompt: str, header: int | None) -> bool:
        last = self.markup.last(prompt)
        if last is None or not _BETWEEN.match(prompt, last.end):
            return False
        word = prompt[last.end :]
        return header is not None or self.closes(last.text) or self.is_reasoning(last.text, word)

    def _opener(self, prompt: str, markers: list[Marker], closing: Marker) -> Marker | None:
        """Return the reasoning tag, the last of these markers, that `closing` closes; None if there is none."""
        for marker in reversed(markers):
            if closing.text in partners(marker.text):
                word = prompt[marker.end : closing.start]
                return marker if self.is_reasoning(marker.text, word[:24]) else None
        return None

    def _open_at_end(self, prompt: str, markers: list[Marker]) -> str | None:
        opened: Marker | None = None
        for marker in markers:
            closes = opened is not None and marker.text in partners(opened.text)
            opened = None if closes or self.closes(marker.text) else marker
        return None if opened is None else prompt[opened.start :]

    def closes(self, tag: str) -> bool:
        """Return True if a tag ends a block: the template shows it, or its form does."""
        if tag in self.closing:
            return True
        return tag not in self.opening and _CLOSES.search(tag) is not None

    def _tag(self, opened: str) -> str:
        found = self.markup.find(opened)
        return found[0].text if found else opened.strip()
