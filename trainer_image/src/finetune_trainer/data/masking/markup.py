"""Finds control tokens and markup, such as `<|im_end|>`, `[INST]` and `</think>`, in rendered text."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable

    from finetune_trainer.data.chat_template.template import ChatTemplate

# The last form is that of templates with triangles around their tags.
_MARKUP = r"<{1,2}[^<>\s]{1,40}>{1,2}|\[[^\[\]\s]{1,40}\]|\u25c1[^\u25c1\u25b7\s]{1,40}\u25b7"
_LONGEST_TAIL = 400
_LONGEST_MARKER = 80


class Marker(NamedTuple):
    """A control token or markup at a position of a text."""

    start: int
    end: int
    text: str


class Markup:
    """The markers of one template.

    A control token is an added token that is special or that the template writes. White space is never one, although
    some vocabularies have tokens for line breaks; neither is a word or a tag that only the vocabulary has. Only a
    special token can end a turn unasked: a closing tag that the tokenizer takes as text belongs to the answer.
    """

    def __init__(self, template: ChatTemplate) -> None:
        source = template.source() + template.source(tools=True)
        self.control: dict[str, int] = {
            text: token_id
            for token_id, text in template.added_tokens.items()
            if text.strip() and (token_id in template.special_ids or text in source)
        }
        for token_id in template.special_ids:
            text = template.token_text(token_id) or ""
            if text.strip():
                self.control.setdefault(text, token_id)
        self.special = {
            text: token_id for text, token_id in self.control.items() if token_id in template.special_ids
        }
        self._vocabulary = frozenset(template.added_tokens.values())
        self._source = source
        # Generic markup is matched by its form: a vocabulary may have thousands of such tokens.
        odd = sorted(
            (text for text in self.control if not re.fullmatch(_MARKUP, text)), key=len, reverse=True
        )
        self._pattern = re.compile("|".join([*map(re.escape, odd), _MARKUP]))

    def find(self, text: str) -> list[Marker]:
        """Return the markers of a text in order."""
        return [Marker(match.start(), match.end(), match[0]) for match in self._pattern.finditer(text)]

    def last(self, text: str) -> Marker | None:
        """Return the last marker of a text, if it stands in the last characters; None if not."""
        return next(reversed(self.at_end(text, _LONGEST_MARKER)), None)

    def at_end(self, text: str, characters: int = _LONGEST_TAIL) -> list[Marker]:
        """Return the markers in the last `characters` of a text in order."""
        start = max(0, len(text) - characters)
        return [
            Marker(marker.start + start, marker.end + start, marker.text)
            for marker in self.find(text[start:])
        ]

    def last_special(self, text: str) -> int | None:
        """Return the id of the last special token in a text, or None."""
        found = [(position + len(token), len(token), token_id) for token, token_id in self.special.items()
                 if (position := text.rfind(token)) >= 0]  # fmt: skip
        return max(found)[2] if found else None

    def first_special(self, text: str) -> int | None:
        """Return the id of the first special token in a text, or None."""
        found = [(position, -len(token), token_id) for token, token_id in self.special.items()
                 if (position := text.find(token)) >= 0]  # fmt: skip
        return min(found)[2] if found else None

    def knows(self, text: str) -> bool:
        """Return True if the template's source or the vocabulary contains this marker."""
        return text in self._vocabulary or text in self._source

    def first_known(self, texts: Iterable[str]) -> str | None:
        """Return the first of these markers that the template or the vocabulary contains."""
        return next(filter(self.knows, texts), None)
