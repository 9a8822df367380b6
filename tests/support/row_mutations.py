"""Good rows and ways to spoil them, each with the reason for which the row must then be rejected.

The control tokens are ChatML's. All random choices come from a given random.Random, so a seed identifies a file.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any

from finetune_trainer.data.rows.rejection import RowReason

_WORDS = [
    *("the", "cat", "sat", "on", "a", "mat", "and", "said", "hello", "to", "everyone", "who", "came", "by"),
    *(
        "that",
        "day",
        "17",
        "3.14",
        "(really?)",
        "e.g.",
        "na\u00efve",
        "\u65e5\u672c",
        "\u0645\u0631\u062d\u0628\u0627",
    ),
    *("\U0001f600", "<b>bold</b>", "{{x}}", "[INST", "\\n"),
]
_EDGES = ("", "", "", " ", "\n", "  \n", "\t")
_CONTROL_TOKENS = ("<|im_start|>", "<|im_end|>", "<|endoftext|>")

Row = dict[str, Any]
Change = Callable[[Row, Random], None]


@dataclass(frozen=True)
class Mutation:
    """A way to spoil a row; `line` returns the bytes of its line without the line break."""

    name: str
    reason: RowReason
    line: Callable[[Row, Random], bytes]


def text(random: Random, words: int = 12) -> str:
    """Return some words in several scripts, sometimes with white space around them."""
    middle = " ".join(random.choices(_WORDS, k=random.randint(1, words)))
    return random.choice(_EDGES) + middle + random.choice(_EDGES)


def good_row(random: Random) -> Row:
    """Return a conversation that every ChatML template renders, in one of the spellings of messages."""
    messages = [{"role": "system", "content": text(random)}] if random.random() < 0.4 else []
    for _ in range(random.randint(1, 3)):
        messages.append({"role": "user", "content": text(random)})
        messages.append({"role": "assistant", "content": text(random)})
    row: Row = {"id": random.randrange(1 << 30), "messages": messages}
    spelling = random.random()
    if spelling < 0.1:
        row["messages"] = [_parts(message, random) for message in messages]
    elif spelling < 0.2:
        roles = {"user": "human", "assistant": "gpt", "system": "system"}
        row["messages"] = [{"from": roles[item["role"]], "value": item["content"]} for item in messages]
    elif spelling < 0.3:
        row["messages"] = json.dumps(messages)
    elif spelling < 0.4:
        row["messages"] = [
            *({**message, "weight": random.choice([0, 1])} for message in messages[:-1]),
            messages[-1],
        ]
    return row


def plain_row(random: Random) -> Row:
    """Return a conversation with `role` and text in `content`, the input of mutations."""
    while True:
        row = good_row(random)
        if isinstance(row["messages"], list) and all(
            isinstance(m.get("content"), str) for m in row["messages"]
        ):
            return row


def line_of(row: Any, random: Random) -> bytes:
    """Return a row as a line of JSON, with or without escapes for characters beyond ASCII."""
    try:
        return json.dumps(row, ensure_ascii=random.random() < 0.5).encode()
    except UnicodeEncodeError:
        return json.dumps(row).encode()


def _parts(message: Row, random: Random) -> Row:
    content = message["content"]
    cut = random.randint(0, len(content))
    return {
        **message,
        "content": [{"type": "text", "text": piece} for piece in (content[:cut], content[cut:])],
    }


def _message(row: Row, random: Random, role: str | None = None) -> Row:
    found: Row = random.choice([m for m in row["messages"] if role is None or m["role"] == role])
    return found


def _set(key: str, *values: Any, role: str | None = None) -> Change:
    def change(row: Row, random: Random) -> None:
        _message(row, random, role)[key] = copy.deepcopy(random.choice(values))

    return change


def _set_column(key: str, *values: Any) -> Change:
    def change(row: Row, random: Random) -> None:
        row[key] = copy.deepcopy(random.choice(values))

    return change


def _replace_message(row: Row, random: Random) -> None:
    row["messages"][random.randrange(len(row["messages"]))] = random.choice(["hello", 5, None, [], True])


def _remove(key: str) -> Change:
    def change(row: Row, random: Random) -> None:
        del _message(row, random)[key]

    return change


def _no_answers(row: Row, random: Random) -> None:
    for message in row["messages"]:
        if message["role"] == "assistant":
            message["role"] = random.choice(["user", "system", "tool"])


def _no_learned_answers(row: Row, random: Random) -> None:
    for message in row["messages"]:
        message.update(random.choice([{"weight": 0}, {"weight": 0.0}, {"train": False}]))
        message.setdefault("weight", 1)


def _insert(key: str, *pieces: str, role: str | None = None) -> Change:
    def change(row: Row, random: Random) -> None:
        message = _message(row, random, role)
        at = random.randint(0, len(message[key]))
        message[key] = message[key][:at] + random.choice(pieces) + message[key][at:]
        message.pop("weight", None)

    return change


def _too_long(row: Row, random: Random) -> None:
    message = row["messages"][-1]
    message["content"] = " ".join(random.choices(_WORDS, k=3000))


def _call(function: Any) -> Row:
    return {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": function}]}


def _append(*messages: Row) -> Change:
    def change(row: Row, random: Random) -> None:
        row["messages"] += [{"role": "user", "content": "go on"}, copy.deepcopy(random.choice(messages))]

    return change


def _truncated(row: Row, random: Random) -> bytes:
    line = json.dumps(row).encode()
    return line[: random.randrange(1, len(line))]


def _too_deep(row: Row, random: Random) -> bytes:
    depth = random.choice([101, 500, 5000, 100_000])
    opening, closing = random.choice([("[", "]"), ('{"a":', "}")])
    inside = f"{opening * depth}1{closing * depth}".encode()
    return b'{"extra": ' + inside + b", " + line_of(row, random)[1:]


def _within(member: bytes) -> Callable[[Row, Random], bytes]:
    """Return a change that puts an unchanged member before the others."""
    return lambda row, random: b"{" + member + b", " + line_of(row, random)[1:]


def _inside_a_text(*pieces: bytes) -> Callable[[Row, Random], bytes]:
    def line(row: Row, random: Random) -> bytes:
        _message(row, random)["content"] = "before HERE after"
        return line_of(row, random).replace(b"HERE", random.choice(pieces), 1)

    return line


def _instead(*lines: bytes) -> Callable[[Row, Random], bytes]:
    return lambda _, random: random.choice(lines)


def _changed(change: Change) -> Callable[[Row, Random], bytes]:
    def line(row: Row, random: Random) -> bytes:
        change(row, random)
        return line_of(row, random)

    return line


_LINES = {
    "cut off": (RowReason.INVALID_JSON, _truncated),
    "trailing comma": (RowReason.INVALID_JSON, lambda row, random: line_of(row, random)[:-1] + b",}"),
    "single quotes": (RowReason.INVALID_JSON, lambda row, _: repr(row).encode()),
    "no JSON": (RowReason.INVALID_JSON, _instead(b"hello", b"}", b"# comment", b"messages: []", b"\x0b")),
    "two objects": (RowReason.INVALID_JSON, lambda row, random: line_of(row, random) * 2),
    "NaN": (RowReason.INVALID_JSON, _within(b'"x": NaN')),
    "Infinity": (RowReason.INVALID_JSON, _within(b'"x": [-Infinity]')),
    "number without end": (RowReason.INVALID_JSON, _within(b'"x": 1e400')),
    "number of 5,000 digits": (RowReason.INVALID_JSON, _within(b'"x": ' + b"9" * 5000)),
    "key twice": (RowReason.INVALID_JSON, _within(b'"messages": []')),
    "too deep": (RowReason.INVALID_JSON, _too_deep),
    "raw control character": (RowReason.INVALID_JSON, _inside_a_text(b"\x00", b"\x01", b"\t", b"\x1f")),
    "bad escape": (RowReason.INVALID_JSON, _inside_a_text(b"\\x41", b"\\u12", b"\\")),
    "not UTF-8": (RowReason.INVALID_ENCODING, _inside_a_text(b"\xff", b"\xe9", b"\xc3", b"\xed\xa0\x80")),
    "array": (RowReason.NOT_AN_OBJECT, _instead(b"[]", b"[1, 2]", b'[{"role": "user"}]')),
    "scalar": (RowReason.NOT_AN_OBJECT, _instead(b"null", b"5", b"-0.5", b"true", b'"text"')),
}
_CHANGES = {
    "messages of another type": _set_column(
        "messages", None, 5, True, {}, "hello", "{}", "[{'role': 'user'}]"
    ),
    "no messages": _set_column("messages", [], "[]"),
    "message of another type": _replace_message,
    "role missing": _remove("role"),
    "role of another type": _set("role", None, 5, [], {}, True),
    "role unknown": _set("role", "narrator", "", "assistants", "us er!", "\u00fcser"),
    "content missing": _remove("content"),
    "content of another type": _set("content", None, 5, 1.5, {}, True),
    "part of another type": _set("content", [5], [None], [["text"]], [{"type": 5, "text": "x"}]),
    "part without text": _set("content", [{"type": "text"}], [{"type": "text", "text": 5}], [{}]),
    "half a surrogate pair": _insert("content", "\ud83d", "\udc00x"),
    "half a surrogate pair in a key": lambda row, random: _message(row, random).update({"k\ud800": "x"}),
    "weight out of range": _set("weight", 2, -1, 0.5, "1", True, []),
    "train of another type": _set("train", 1, "yes", {}),
    "reasoning of another type": _set("reasoning_content", 5, [], {"text": "x"}),
    "tool calls of another type": _set("tool_calls", 5, "x", True, role="assistant"),
    "call without function": _append(_call(None), _call("f"), _call({}), _call({"name": 5})),
    "arguments of another type": _append(
        _call({"name": "f", "arguments": 5}),
        _call({"name": "f", "arguments": "[1]"}),
        _call({"name": "f", "arguments": "{not json"}),
    ),
    "tools of another type": _set_column("tools", 5, "x", ["f"], "{'a': 1}", {"a": 1}),
    "system of another type": _set_column("system", 5, ["x"], True),
}
_OTHER_CHANGES = {
    "picture": (
        RowReason.UNSUPPORTED_CONTENT,
        _set(
            "content",
            [{"type": "image_url", "image_url": {"url": "x"}}],
            [{"type": "image"}, "what is this?"],
        ),
    ),
    "sound": (RowReason.UNSUPPORTED_CONTENT, _set("content", [{"type": "input_audio", "input_audio": {}}])),
    "column of pictures": (RowReason.UNSUPPORTED_CONTENT, _set_column("images", ["x"], [{"path": "x"}], "x")),
    "no answers": (RowReason.NO_ASSISTANT_TURN, _no_answers),
    "no answers to learn": (RowReason.NO_ASSISTANT_TURN, _no_learned_answers),
    "control token": (RowReason.CONTROL_TOKEN_IN_CONTENT, _insert("content", *_CONTROL_TOKENS)),
    "too long": (RowReason.TOO_LONG, _too_long),
}

MUTATIONS = (
    *(Mutation(name, reason, line) for name, (reason, line) in _LINES.items()),
    *(Mutation(name, RowReason.INVALID_MESSAGES, _changed(change)) for name, change in _CHANGES.items()),
    *(Mutation(name, reason, _changed(change)) for name, (reason, change) in _OTHER_CHANGES.items()),
)
