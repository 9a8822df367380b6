"""Tells text in UTF-16 and UTF-32 from UTF-8 and from binary data, with and without a byte order mark."""

from __future__ import annotations

_MARKS = (
    (b"\xff\xfe\x00\x00", "UTF-32"),
    (b"\x00\x00\xfe\xff", "UTF-32"),
    (b"\xff\xfe", "UTF-16"),
    (b"\xfe\xff", "UTF-16"),
)
_CODECS = (("UTF-32", "utf-32-le"), ("UTF-32", "utf-32-be"), ("UTF-16", "utf-16-le"), ("UTF-16", "utf-16-be"))
_LOOKED_AT = 1024
# Text of any script has spaces, line ends and JSON's own characters, whose upper bytes are zero.
_LEAST_ASCII = 0.1
_LEAST_READABLE = 0.95


def wide_encoding(head: bytes) -> str | None:
    """Return `UTF-16` or `UTF-32` for text in that encoding, None for other bytes."""
    for mark, name in _MARKS:
        if head.startswith(mark):
            return name
    sample = head[: min(_LOOKED_AT, len(head) // 4 * 4)]
    if b"\x00" not in sample:
        return None
    for name, codec in _CODECS:
        try:
            text = sample.decode(codec)
        except UnicodeDecodeError as error:
            # The sample may end within a surrogate pair.
            if error.start < len(sample) - 4:
                continue
            text = sample[: error.start].decode(codec)
        if text and _is_text(text):
            return name
    return None


def _is_text(text: str) -> bool:
    """Return True if the characters are those of a text, as far as a wrong decoding would give others."""
    readable = sum(character.isprintable() or character.isspace() for character in text)
    latin = sum(character.isascii() for character in text)
    return (
        all(character >= " " or character in "\t\n\r\f" for character in text)
        and readable >= _LEAST_READABLE * len(text)
        and latin >= _LEAST_ASCII * len(text)
    )
