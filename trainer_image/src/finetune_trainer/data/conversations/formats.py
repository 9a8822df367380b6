"""Finds the columns that hold a row's conversation. The first rows decide once for the whole dataset."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal

from finetune_trainer.data.conversations.conversation import Conversation, parse_conversation
from finetune_trainer.data.conversations.messages import require_json_text
from finetune_trainer.data.rows.columns import (
    CONTEXT,
    HISTORY,
    INSTRUCTION,
    INSTRUCTION_INPUTS,
    INSTRUCTION_OUTPUTS,
    MEDIA,
    MESSAGES,
    PREFERENCE,
    PROMPT_AND_COMPLETION,
    SYSTEM,
    TEXT,
    TOOLS,
)
from finetune_trainer.data.rows.rejection import RowReason, RowRejected
from finetune_trainer.data.rows.strict_json import JsonError, kind_of, parse_json, shown
from finetune_trainer.errors import Reason, StageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from finetune_trainer.data.rows.reader import Row

FORMATS = ("Messages", "PromptCompletion", "Alpaca", "ShareGPT")
ROWS_LOOKED_AT = 200
_COLUMNS_NAMED = 12
_KNOWN = (
    "`messages` or `conversations`; `prompt` and `completion` (or `question` and `answer` and the like); "
    "`instruction` and `output`"
)
_HINTS = {
    "Preference": "these are pairs of a preferred and a rejected answer; to learn the preferred ones, write them as "
    "`messages`",
    "Labelled": "the column `label` says which answers are wanted; to learn those, leave out the other rows and the "
    "column",
    "Text": "plain text has no questions and answers to learn; write each row as `messages`, or as `prompt` and "
    "`completion`",
    "Ambiguous": "it is not clear which columns hold the question and the answer; name them `prompt` and `completion`, "
    "and put the whole question into `prompt`",
    "Unknown": "no known columns",
}
_UNKNOWN = ("Unknown", "")


@dataclass(frozen=True)
class Detection:
    """The format of a dataset, one of FORMATS, and the reason for this decision."""

    format: str
    why: str


def detect_format(rows: Iterable[Row]) -> Detection:
    """Decide the format from the first 200 rows: most rows with known columns have it.

    If no row can be read, Messages is assumed, so that each row gets its own verdict. Raises StageError(InvalidDataset)
    if there are no rows, no column has a known name, or the columns hold nothing that can be learned.
    """
    shapes: Counter[tuple[str, str]] = Counter()
    columns: dict[str, None] = {}
    total = 0
    for row in islice(rows, ROWS_LOOKED_AT):
        total += 1
        if isinstance(row.value, dict):
            shapes[_shape(row.value)] += 1
            columns.update(dict.fromkeys(row.value))
    if not total:
        raise StageError(Reason.INVALID_DATASET, "the dataset must have rows, found none; check the file")
    if not shapes:
        return Detection("Messages", f"assumed: none of the first {total} rows is an object")
    known = Counter({shape: count for shape, count in shapes.items() if shape != _UNKNOWN})
    (name, what), count = (known or shapes).most_common(1)[0]
    if name in FORMATS:
        return Detection(name, f"{what} in {count} of the first {total} rows")
    found = ", ".join(shown(column) for column in list(columns)[:_COLUMNS_NAMED]) or "none"
    more = ", ..." if len(columns) > _COLUMNS_NAMED else ""
    raise StageError(
        Reason.INVALID_DATASET,
        f"the dataset must have the columns {_KNOWN}; found {found}{more}: {_HINTS[name]}",
    )


def conversation_row(value: dict[str, Any], format_name: str) -> dict[str, Any]:
    """Return the row in the form that `parse_conversation` takes, with the names that its parts have in the dataset.

    `format_name` is one of FORMATS. Raises RowRejected(InvalidMessages) for a row without the columns of the format, and
    RowRejected(UnsupportedContent) for a row that has images, audio or video in addition to text.
    """
    for name in MEDIA:
        if value.get(name):
            raise RowRejected(RowReason.UNSUPPORTED_CONTENT, name, "only text can be learned")
    if format_name == "Alpaca":
        row = _alpaca(value)
    elif format_name == "PromptCompletion":
        row = _prompt_and_completion(value)
    else:
        row = _messages(value, MESSAGES if format_name == "Messages" else MESSAGES[1:] + MESSAGES[:1])
    for target, names in (("tools", TOOLS), ("system", SYSTEM)):
        found = _first(value, names)
        if found is not None:
            row[target] = value[found]
    return row


def parse_row(value: dict[str, Any], format_name: str, reasoning: Literal["Keep", "Strip"]) -> Conversation:
    """Return a row's conversation. Raises RowRejected like `conversation_row` and `parse_conversation`."""
    return parse_conversation(conversation_row(value, format_name), reasoning)


def _shape(value: dict[str, Any]) -> tuple[str, str]:
    """Return the format of a row, or a key of _HINTS, and the columns that show it."""
    column = _first(value, MESSAGES)
    if column is not None:
        item = next((item for item in _list(value[column]) if isinstance(item, dict)), {})
        if item.get("from") is not None and item.get("role") is None:
            return "ShareGPT", f"column `{column}` holds objects with `from` and `value`"
        return (
            "Messages",
            f"column `{column}` holds objects with `role` and `content`" if item else f"column `{column}`",
        )
    output = _first(value, INSTRUCTION_OUTPUTS)
    if value.get(INSTRUCTION) is not None and output is not None:
        return "Alpaca", f"columns `{INSTRUCTION}` and `{output}`"
    pairs = _pairs(value)
    if pairs:
        return _shape_of_pairs(value, pairs)
    if all(value.get(name) is not None for name in PREFERENCE):
        return "Preference", ""
    return ("Text", "") if value.get(TEXT) is not None else _UNKNOWN


def _shape_of_pairs(value: dict[str, Any], pairs: Sequence[tuple[str, str]]) -> tuple[str, str]:
    prompt, completion = pairs[0]
    if isinstance(value.get("label"), bool):
        return "Labelled", ""
    if pairs[0] != PROMPT_AND_COMPLETION[0] and (len(pairs) > 1 or _first(value, CONTEXT) is not None):
        return "Ambiguous", ""
    return "PromptCompletion", f"columns `{prompt}` and `{completion}`"


def _pairs(value: dict[str, Any]) -> list[tuple[str, str]]:
    return [pair for pair in PROMPT_AND_COMPLETION if all(value.get(name) is not None for name in pair)]


def _first(value: dict[str, Any], names: Sequence[str]) -> str | None:
    return next((name for name in names if value.get(name) is not None), None)


def _list(value: Any) -> list[Any]:
    """Return the value if it is a list, the list that JSON text holds, or an empty list."""
    if isinstance(value, str):
        try:
            value = parse_json(value)
        except JsonError:
            return []
    return value if isinstance(value, list) else []


def _messages(value: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
    column = _first(value, names) or names[0]
    messages = value.get(column)
    if isinstance(messages, str):
        messages = _parsed(messages, column)
    return {"messages": messages, "column": column}


def _prompt_and_completion(value: dict[str, Any]) -> dict[str, Any]:
    """Turn a prompt into the user's message and a completion into the assistant's.

    Either may be a list of messages instead. Answers inside a prompt are context: only the completion is learned.
    """
    pairs = _pairs(value)
    if pairs and pairs[0] != PROMPT_AND_COMPLETION[0] and len(pairs) > 1:
        raise _rejected(pairs[0][0], "must be the only question column, found several pairs of columns")
    prompt_name, completion_name = pairs[0] if pairs else PROMPT_AND_COMPLETION[0]
    messages: list[Any] = []
    places: list[str] = []
    for name, role in ((prompt_name, "user"), (completion_name, "assistant")):
        found = value.get(name)
        if isinstance(found, list):
            context = role == "user"
            messages += [
                {**item, "weight": 0} if context and isinstance(item, dict) else item for item in found
            ]
            places += [f"{name}[{index}]" for index in range(len(found))]
        else:
            messages.append({"role": role, "content": _text(found, name, "a string or a list of messages")})
            places.append(name)
    return {"messages": messages, "places": places, "column": completion_name}


def _alpaca(value: dict[str, Any]) -> dict[str, Any]:
    """Join the instruction and its input, if any, with a blank line as the user's message."""
    input_names = [name for name in INSTRUCTION_INPUTS if value.get(name) not in (None, "")]
    if len(input_names) > 1:
        raise _rejected(input_names[1], f"must be empty if there is `{input_names[0]}`")
    output_name = _first(value, INSTRUCTION_OUTPUTS) or INSTRUCTION_OUTPUTS[0]
    messages, places = _history(value.get(HISTORY))
    asked = [_text(value.get(INSTRUCTION), INSTRUCTION)]
    asked += [_text(value[name], name) for name in input_names]
    messages.append({"role": "user", "content": "\n\n".join(text for text in asked if text.strip())})
    messages.append({"role": "assistant", "content": _text(value.get(output_name), output_name)})
    return {"messages": messages, "places": [*places, INSTRUCTION, output_name], "column": output_name}


def _history(history: Any) -> tuple[list[dict[str, Any]], list[str]]:
    """Return earlier turns, given as pairs of a question and an answer; they are learned like the last turn."""
    if isinstance(history, str) and history.strip():
        history = _parsed(history, HISTORY)
    if not history:
        return [], []
    if not isinstance(history, list):
        raise _rejected(HISTORY, f"must be a list of pairs of texts, found {kind_of(history)}")
    messages: list[dict[str, Any]] = []
    places: list[str] = []
    for index, pair in enumerate(history):
        place = f"{HISTORY}[{index}]"
        if not isinstance(pair, list) or len(pair) != 2:
            raise _rejected(place, "must be a pair of a question and an answer")
        for role, text in zip(("user", "assistant"), pair, strict=True):
            messages.append({"role": role, "content": _text(text, place)})
            places.append(place)
    return messages, places


def _text(value: Any, place: str, wanted: str = "a string") -> str:
    if not isinstance(value, str):
        raise _rejected(place, f"must be {wanted}, found {'none' if value is None else kind_of(value)}")
    require_json_text(value, place)
    return value


def _parsed(text: str, place: str) -> Any:
    try:
        return parse_json(text)
    except JsonError as error:
        hint = "; Python's own notation is not JSON" if text.startswith(("[{'", "{'", "['")) else ""
        raise _rejected(place, f"must be a list or JSON text of one: {error.message}{hint}") from error


def _rejected(place: str, detail: str) -> RowRejected:
    return RowRejected(RowReason.INVALID_MESSAGES, place, detail)
