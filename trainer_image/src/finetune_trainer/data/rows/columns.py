"""Column names that identify the format of a dataset."""

from __future__ import annotations

# The name that the reader gives to a row that is a list of messages and has no columns.
LIST_OF_MESSAGES = "[]"
MESSAGES = ("messages", "conversations", "conversation", LIST_OF_MESSAGES)
TOOLS = ("tools", "functions")
SYSTEM = ("system", "system_prompt")
HISTORY = "history"
PROMPT_AND_COMPLETION = (
    ("prompt", "completion"),
    ("prompt", "response"),
    ("question", "answer"),
    ("question", "response"),
    ("query", "response"),
    ("input", "output"),
)
# These count only in rows without any of the pairs above.
_ASKING = ("user", "human", "prompter")
_ANSWERING = ("assistant", "model", "gpt", "ai", "bot", "chatbot")
FURTHER_PAIRS = tuple((asking, answering) for asking in _ASKING for answering in _ANSWERING)
INSTRUCTION = "instruction"
INSTRUCTION_INPUTS = ("input", "context")
INSTRUCTION_OUTPUTS = ("output", "response")
# A preferred and a rejected answer; the first pair is the most common one.
PREFERENCES = (
    ("chosen", "rejected"),
    ("chosen_response", "rejected_response"),
    ("accepted", "rejected"),
    ("preferred", "rejected"),
    ("preferred", "dispreferred"),
    ("preferred_output", "non_preferred_output"),
    ("winner", "loser"),
    ("better", "worse"),
    ("response_a", "response_b"),
    ("response_0", "response_1"),
    ("response_1", "response_2"),
    ("response_j", "response_k"),
    ("answer_0", "answer_1"),
    ("completion_a", "completion_b"),
    ("output_1", "output_2"),
)
TEXT = "text"
# A question may depend on this text. Without it, the model would learn another row than the one given.
CONTEXT = ("context", "passage", "document", "documents", "choices", "options")
MEDIA = ("image", "images", "audio", "audios", "video", "videos")

KNOWN = frozenset(
    {
        *MESSAGES,
        *TOOLS,
        *SYSTEM,
        *(name for pair in PROMPT_AND_COMPLETION for name in pair),
        INSTRUCTION,
        *INSTRUCTION_INPUTS,
        *INSTRUCTION_OUTPUTS,
        HISTORY,
        *PREFERENCES[0],
        TEXT,
    }
)
# Members that hold the list of rows in an object that is not a row itself.
LISTS_OF_ROWS = ("data", "rows", "examples", "records", "items", "samples", "instances", "train")
# Members of a document that describe its list of rows, and hold none themselves.
DESCRIPTIONS = ("features", "fields", "columns", "schema", "metadata")
