"""Finds the columns that hold a row's conversation. The first rows decide once for the whole dataset."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal

from finetune_trainer.data.conversations.conversation import Conversation, parse_conversation
from finetune_trainer.data.conversations.messages import require_json_text
from finetune_trainer.data.conversations.shapes import (
    FORMATS,
    UNKNOWN,
    Names,
    Shape,
    by_rows,
    first_given,
    has_columns,
    is_by_columns,
    list_of,
    messages_column,
    pairs_of,
    shape_of,
    simplified,
)
from finetune_trainer.data.rows.columns import (
    FURTHER_PAIRS,
    HISTORY,
    INSTRUCTION,
    INSTRUCTION_INPUTS,
    INSTRUCTION_OUTPUTS,
    LIST_OF_MESSAGES,
    MEDIA,
    MESSAGES,
    PROMPT_AND_COMPLETION,
    SYSTEM,
    TOOLS,
)
from finetune_trainer.data.rows.rejection import RowReason, RowRejected
from finetune_trainer.data.rows.strict_json import JsonError, kind_of, parse_json, shown
from finetune_trainer.errors import Reason, StageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from finetune_trainer.data.rows.reader import Row

ROWS_LOOKED_AT = 200
_COLUMNS_NAMED = 12
_KNOWN = (
    "`messages` or `conversations`; `prompt` and `completion` (or `question` and `answer` and the like); "
    "`instruction` and `output`"
)
_WANTED = {
    "Messages": "`messages` or `conversations`",
    "ShareGPT": "`conversations` or `messages`",
    "PromptCompletion": "`prompt` and `completion` (or `question` and `answer` and the like)",
    "Alpaca": "`instruction` and `output`",
}
HINTS = {
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
_QUESTIONS = (
    INSTRUCTION,
    *dict.fromkeys(question for question, _ in (*PROMPT_AND_COMPLETION, *FURTHER_PAIRS)),
)
_ANSWERS = tuple(dict.fromkeys(answer for _, answer in (*PROMPT_AND_COMPLETION, *FURTHER_PAIRS)))


@dataclass(frozen=True)
class Detection:
    """The format of a dataset, one of FORMATS, and the reason for this decision."""

    format: str
    why: str


def detect_format(rows: Iterable[Row], wanted: str = "Auto") -> Detection:
    """Decide the format from the first 200 rows: most rows with known columns have it.

    A `wanted` format other than Auto is the decision. If no row can be read, Messages is assumed, so that each row gets
    its own verdict. Raises StageError(InvalidDataset) if there are no rows, no column has a known name, the columns hold
    nothing that can be learned, or no row has the columns of the wanted format.
    """
    shapes: Counter[Shape] = Counter()
    columns: dict[str, None] = {}
    total = fitting = 0
    first: dict[str, Any] = {}
    for row in islice(rows, ROWS_LOOKED_AT):
        total += 1
        if isinstance(row.value, dict):
            first = first or row.value
            shapes[_shape(row.value)] += 1
            columns.update(dict.fromkeys(row.value))
            fitting += wanted == "Auto" or _fits(row.value, wanted)
    if not total:
        raise StageError(Reason.INVALID_DATASET, "the dataset must have rows, found none; check the file")
    if wanted != "Auto" and (fitting or not shapes):
        return Detection(wanted, "set in dataset.format")
    if not shapes:
        return Detection("Messages", f"assumed: none of the first {total} rows is an object")
    known = Counter({shape: count for shape, count in shapes.items() if shape != UNKNOWN})
    shape, count = (known or shapes).most_common(1)[0]
    if wanted == "Auto" and shape.name in FORMATS:
        return Detection(shape.name, f"{shape.why} in {count} of the first {total} rows")
    columns.pop(LIST_OF_MESSAGES, None)
    found = ", ".join(shown(column) for column in list(columns)[:_COLUMNS_NAMED]) or "none"
    more = ", ..." if len(columns) > _COLUMNS_NAMED else ""
    must = (
        f"the dataset must have the columns {_KNOWN}"
        if wanted == "Auto"
        else f"a dataset of the format {wanted} must have the columns {_WANTED[wanted]}"
    )
    raise StageError(Reason.INVALID_DATASET, f"{must}; found {found}{more}: {_hint(shape, first)}")


def conversation_row(value: dict[str, Any], format_name: str) -> dict[str, Any]:
    """Return the row in the form that `parse_conversation` takes, with the names that its parts have in the dataset.

    `format_name` is one of FORMATS. Raises RowRejected(InvalidMessages) for a row without the columns of the format, and
    RowRejected(UnsupportedContent) for a row that has images, audio or video in addition to text.
    """
    for name in MEDIA:
        if value.get(name):
            raise RowRejected(RowReason.UNSUPPORTED_CONTENT, name, "only text can be learned")
    if not has_columns(value, format_name):
        _require_columns(value, format_name)
    if format_name == "Alpaca":
        row = _alpaca(value)
    elif format_name == "PromptCompletion":
        row = _prompt_and_completion(value)
    else:
        row = _messages(value, MESSAGES if format_name == "Messages" else (*MESSAGES[1:], MESSAGES[0]))
    for target, names in (("tools", TOOLS), ("system", SYSTEM)):
        found = first_given(value, names)
        if found is not None:
            row[target] = value[found]
    return row


def parse_row(value: dict[str, Any], format_name: str, reasoning: Literal["Keep", "Strip"]) -> Conversation:
    """Return a row's conversation. Raises RowRejected like `conversation_row` and `parse_conversation`.

    The places in it and in rejections have the names of the file.
    """
    row, names = value, _SAME
    if not has_columns(value, format_name):
        row, names = simplified(value, partial(has_columns, format_name=format_name))
    if not row.keys().isdisjoint(_RENAMED):
        columns = {
            target: names.original.get(name, name)
            for name, target in _RENAMED.items()
            if row.get(target) is None
        }
        names = replace(names, original={**columns, **names.original})
    try:
        conversation = parse_conversation(conversation_row(row, format_name), reasoning)
    except RowRejected as rejection:
        raise RowRejected(rejection.reason, names.place(rejection.field), rejection.detail) from rejection
    return conversation if names is _SAME else conversation.renamed(names.place)


_SAME = Names()
# Members of `conversation_row` under the other names that their columns may have.
_RENAMED = {TOOLS[1]: TOOLS[0], SYSTEM[1]: SYSTEM[0]}


def _shape(value: dict[str, Any]) -> Shape:
    """Return the shape of a row or of the row that it holds."""
    row, names = simplified(value, lambda item: shape_of(item) != UNKNOWN)
    shape = shape_of(row)
    return shape if not names.prefix else Shape(shape.name, f"{shape.why} inside `{names.prefix[:-1]}`")


def _fits(value: dict[str, Any], format_name: str) -> bool:
    row, _ = simplified(value, partial(has_columns, format_name=format_name))
    return has_columns(row, format_name) and _shape(value).name != "Preference"


def _hint(shape: Shape, row: Mapping[str, Any]) -> str:
    """Return what helps a dataset of this shape, one of whose rows is `row`."""
    if shape.name in FORMATS:
        return f"this is the format {shape.name} ({shape.why}); set dataset.format to Auto"
    if shape != UNKNOWN:
        return HINTS[shape.name]
    lists = [name for name, value in row.items() if _are_messages(value)]
    asked, answered = first_given(row, _QUESTIONS), first_given(row, _ANSWERS)
    hints = {
        "each row is a single message; write the messages of one conversation as a list `messages` in one row": (
            row.keys() & {"role", "from"} and row.keys() & {"content", "value"}
        ),
        "this looks like an export of ChatGPT; write each conversation as `messages`": "mapping" in row,
        f"rename the column {shown(lists[0] if lists else None)}, which holds messages, to `messages`": lists,
        f"no column with an answer stands beside {shown(asked)}; name the two `prompt` and `completion`": asked,
        f"no column with a question stands beside {shown(answered)}; name the two `prompt` and `completion`": answered,
    }
    return next((hint for hint, fits in hints.items() if fits), HINTS[shape.name])


def _are_messages(value: Any) -> bool:
    items = list_of(value)
    return bool(items) and all(isinstance(item, dict) and item.keys() & {"role", "from"} for item in items)


def _require_columns(value: Mapping[str, Any], format_name: str) -> None:
    """Raise RowRejected(InvalidMessages) for a row without the columns of its format; the place is a column that it has."""
    columns_of: dict[str, tuple[str, ...]] = {
        "Alpaca": (INSTRUCTION, *INSTRUCTION_OUTPUTS),
        "PromptCompletion": (*_QUESTIONS[1:], *_ANSWERS),
    }
    wanted = columns_of.get(format_name, MESSAGES)
    null = next((name for name in wanted if name in value and value[name] is None), None)
    given = first_given(value, wanted)
    if format_name not in columns_of and given is not None:
        raise _rejected(given, f"must be a list of messages, found {kind_of(value[given])}")
    if null is not None:
        raise _rejected(null, "must not be empty, found null")
    columns = ", ".join(shown(name) for name in list(value)[:_COLUMNS_NAMED]) or "none"
    place = given or next(iter(value), "row")
    raise _rejected(place, f"the row must have {_WANTED[format_name]}, found the columns {columns}")


def _messages(value: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
    column = messages_column(value, names) or first_given(value, names) or names[0]
    messages = value.get(column)
    place = "" if column == LIST_OF_MESSAGES else column
    if isinstance(messages, str):
        messages = _parsed(messages, column)
    if isinstance(messages, dict) and is_by_columns(messages):
        messages = by_rows(messages)
    if isinstance(messages, list) and messages and isinstance(messages[0], list):
        if len(messages) > 1:
            raise _rejected(
                column, f"must be one list of messages, found {len(messages)} lists; give each its own row"
            )
        messages = messages[0]
        place = f"{place}[0]"
    row = {"messages": messages, "column": place or "list"}
    if isinstance(messages, list):
        if not all(isinstance(item, dict) and ("role" in item or "from" in item) for item in messages):
            opened = [_opened(item) for item in messages]
            row["messages"] = [item for item, _ in opened]
            row["places"] = [f"{place}[{index}]{inside}" for index, (_, inside) in enumerate(opened)]
        else:
            row["places"] = [f"{place}[{index}]" for index in range(len(messages))]
    return row


def _opened(item: Any) -> tuple[Any, str]:
    """Return the message, or the message that it holds in its only object, and its place inside."""
    if isinstance(item, dict) and "role" not in item and "from" not in item:
        inner = [
            name
            for name, found in item.items()
            if isinstance(found, dict) and found.keys() & {"role", "from"}
        ]
        if len(inner) == 1:
            return item[inner[0]], f".{inner[0]}"
    return item, ""


def _prompt_and_completion(value: dict[str, Any]) -> dict[str, Any]:
    """Turn a prompt into the user's message and a completion into the assistant's.

    Either may be a list of messages instead. Answers inside a prompt are context: only the completion is learned.
    """
    pairs = pairs_of(value)
    if pairs[0] != PROMPT_AND_COMPLETION[0] and len(pairs) > 1:
        raise _rejected(pairs[0][0], "must be the only question column, found several pairs of columns")
    prompt_name, completion_name = pairs[0]
    messages: list[Any] = []
    places: list[str] = []
    texts: set[str] = set()
    for name, role in ((prompt_name, "user"), (completion_name, "assistant")):
        found = value[name]
        if isinstance(found, dict) and found.keys() & {"role", "from"}:
            found = [found]
        if isinstance(found, list):
            context = role == "user"
            messages += [
                {**item, "weight": 0} if context and isinstance(item, dict) else item for item in found
            ]
            places += [f"{name}[{index}]" for index in range(len(found))]
        else:
            messages.append({"role": role, "content": _text(found, name, "a string or a list of messages")})
            places.append(name)
            texts.add(name)
    return {"messages": messages, "places": places, "texts": texts, "column": completion_name}


def _alpaca(value: dict[str, Any]) -> dict[str, Any]:
    """Join the instruction and its input, if any, with a blank line as the user's message."""
    input_names = [name for name in INSTRUCTION_INPUTS if value.get(name) not in (None, "")]
    if len(input_names) > 1:
        raise _rejected(input_names[1], f"must be empty if there is `{input_names[0]}`")
    output_name = first_given(value, INSTRUCTION_OUTPUTS) or INSTRUCTION_OUTPUTS[0]
    messages, places = _history(value.get(HISTORY))
    asked = [_text(value.get(INSTRUCTION), INSTRUCTION)]
    asked += [_text(value[name], name) for name in input_names]
    messages.append({"role": "user", "content": "\n\n".join(text for text in asked if text.strip())})
    messages.append({"role": "assistant", "content": _text(value.get(output_name), output_name)})
    places += [INSTRUCTION, output_name]
    return {"messages": messages, "places": places, "texts": {*places}, "column": output_name}


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
