"""Converts text to token ids and back; fast tokenizers work without transformers."""

from __future__ import annotations

import re
from itertools import chain, pairwise
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


class Encoder:
    """Encodes rendered text and decodes ids. It can be sent to another process.

    A fast tokenizer first cuts text at its added tokens. The text between two of them is therefore encoded the same way
    at any position. `cut_at` uses this: each turn repeats the beginning of its conversation, and each piece is encoded
    once.
    """

    def __init__(self, tokenizer: Any) -> None:
        fast = bool(getattr(tokenizer, "is_fast", False))
        self._backend: Any = tokenizer.backend_tokenizer if fast else None
        self._slow = None if fast else tokenizer
        self._cut: re.Pattern[str] | None = None
        if self._backend is not None:
            self._backend.no_truncation()
            self._backend.no_padding()

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the token ids of rendered texts; nothing is added, because the template writes all tokens."""
        if self._slow is not None:
            return [list(self._slow(text, add_special_tokens=False)["input_ids"]) for text in texts]
        if self._cut is None:
            return self._encode_whole(texts)
        pieces = [_pieces(self._cut, text) for text in texts]
        places: dict[str, int] = {}
        for piece in chain.from_iterable(pieces):
            places.setdefault(piece, len(places))
        ids = self._encode_whole(list(places))
        return [list(chain.from_iterable([ids[places[piece]] for piece in parts])) for parts in pieces]

    def cut_at(self, tokens: Iterable[str], samples: Sequence[str]) -> None:
        """Cut texts before each of these added tokens, if that provably changes no id.

        The proof holds for tokens that are matched in the raw text and cannot overlap with another added token. No added
        token may absorb neighboring white space. The `samples` are encoded both ways, and texts stay whole if the ids
        differ.
        """
        if self._backend is None:
            return
        self._cut = None
        added = self._backend.get_added_tokens_decoder().values()
        if any(token.lstrip or token.rstrip or token.single_word for token in added):
            return
        raw = {token.content for token in added if not token.normalized}
        contents = [token.content for token in added]
        cuts = sorted(
            token
            for token in set(tokens) & raw
            if token and not any(_overlap(token, other) for other in contents)
        )
        if not cuts:
            return
        whole = self._encode_whole(samples)
        self._cut = re.compile("|".join(re.escape(token) for token in cuts))
        if self.encode(samples) != whole:
            self._cut = None

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of token ids, with control tokens and unchanged spaces."""
        if self._slow is not None:
            text: str = self._slow.decode(
                list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False
            )
            return text
        return str(self._backend.decode(ids, skip_special_tokens=False))

    def decode_each(self, sequences: Sequence[Sequence[int]]) -> list[str]:
        """Return the text of each sequence of token ids."""
        if self._slow is not None:
            return [self.decode(ids) for ids in sequences]
        texts: list[str] = self._backend.decode_batch(sequences, skip_special_tokens=False)
        return texts

    def token(self, token_id: int) -> str | None:
        """Return the vocabulary's entry with this id, or None."""
        if self._slow is not None:
            return None if token_id >= len(self._slow) else str(self._slow.convert_ids_to_tokens(token_id))
        entry: str | None = self._backend.id_to_token(token_id)
        return entry

    def normalize(self, text: str) -> str:
        """Return the text as the tokenizer normalizes it, to compare rendered text with decoded ids."""
        normalizer = self._backend.normalizer if self._backend is not None else None
        if normalizer is not None:
            text = normalizer.normalize_str(text)
        return text.replace("\u2581", " ").strip()

    def _encode_whole(self, texts: Sequence[str]) -> list[list[int]]:
        encodings = self._backend.encode_batch_fast(texts, add_special_tokens=False)
        return [encoding.ids for encoding in encodings]


def _pieces(cut: re.Pattern[str], text: str) -> list[str]:
    """Return the text cut before every match."""
    starts = [match.start() for match in cut.finditer(text)]
    bounds = [*(starts if starts and starts[0] == 0 else [0, *starts]), len(text)]
    return [text[start:end] for start, end in pairwise(bounds)]


def _overlap(token: str, other: str) -> bool:
    """Return True if occurrences of two different tokens, or of one with itself, can share characters."""
    if token != other and (token in other or other in token):
        return True
    shorter = min(len(token), len(other))
    return any(token.endswith(other[:n]) or other.endswith(token[:n]) for n in range(1, shorter))
