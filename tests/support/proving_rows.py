"""Rows with every outcome and ways to parse them, for tests in other processes. The imports are light."""

from __future__ import annotations

import os
import signal
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune_trainer.data.chat_template.template import ChatTemplate, load_tokenizer
from finetune_trainer.data.conversations.conversation import Conversation, parse_conversation
from finetune_trainer.data.masking.masking import Masker
from finetune_trainer.data.rows.reader import Row
from finetune_trainer.data.rows.rejection import RowReason, RowRejected
from finetune_trainer.errors import Reason, StageError

if TYPE_CHECKING:
    from collections.abc import Iterator

MANY = 3000
PARSE = partial(parse_conversation, reasoning="Keep")


def masker(folder: Path, maximum_length: int = 256) -> Masker:
    """Return a masker for the tokenizer in `folder`."""
    return Masker(ChatTemplate(load_tokenizer(folder)), maximum_length)


def rows(count: int) -> Iterator[Row]:
    """Yield rows with every outcome: kept, unreadable, without an answer, too long, with a control token."""
    for number in range(1, count + 1):
        user, answer = f"what is {number} + 1", f"it is {number + 1}"
        messages: list[dict[str, str]] = [{"role": "user", "content": user}]
        if number % 101 == 0:
            yield Row(number, RowRejected(RowReason.INVALID_JSON, "column 3", "no value"), number)
            continue
        if number % 103 == 0:
            answer = answer * 100
        if number % 107 == 0:
            answer += "<|im_end|>"
        if number % 109:
            messages.append({"role": "assistant", "content": answer})
        yield Row(number, {"messages": messages}, number)


def killing(_row: dict[str, Any]) -> Conversation:
    """Kill the process as the kernel does if memory runs out."""
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def failing(row: dict[str, Any]) -> Conversation:
    """Fail with an error that no row may cause."""
    raise ZeroDivisionError(row["messages"][0]["content"])


def killing_late(row: dict[str, Any]) -> Conversation:
    """Kill the process at a row that a worker proves."""
    return killing(row) if row["messages"][0]["content"] == "what is 2900 + 1" else PARSE(row)


class _Unsendable(Conversation):
    def __reduce__(self) -> Any:
        raise MemoryError


def unsendable_late(row: dict[str, Any]) -> Conversation:
    """Return a conversation that the worker has no memory to send, at a row that a worker proves."""
    found = PARSE(row)
    return _Unsendable(**vars(found)) if row["messages"][0]["content"] == "what is 2900 + 1" else found


def failing_late(row: dict[str, Any]) -> Conversation:
    """Fail at a row that a worker proves."""
    return failing(row) if row["messages"][0]["content"] == "what is 2900 + 1" else PARSE(row)


def rejecting_late(row: dict[str, Any]) -> Conversation:
    """Fail at a row that a worker proves, with an error that pickle cannot rebuild."""
    if row["messages"][0]["content"] == "what is 2900 + 1":
        raise StageError(Reason.INVALID_DATASET, "no such column")
    return PARSE(row)


def children() -> list[int]:
    """Return the child processes of this process."""
    task = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children")
    return [int(number) for number in task.read_text().split()]
