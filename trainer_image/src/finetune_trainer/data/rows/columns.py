"""Column names that identify the format of a dataset."""

from __future__ import annotations

MESSAGES = ("messages", "conversations", "conversation")
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
INSTRUCTION = "instruction"
INSTRUCTION_INPUTS = ("input", "context")
INSTRUCTION_OUTPUTS = ("output", "response")
PREFERENCE = ("chosen", "rejected")
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
        *PREFERENCE,
        TEXT,
    }
)
# Members that hold the list of rows in an object that is not a row itself.
LISTS_OF_ROWS = ("data", "rows", "examples", "records", "items", "samples", "instances", "train")
