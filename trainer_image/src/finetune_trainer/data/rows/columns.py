"""Names of columns by which a dataset's rows are recognized."""

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
# Text that a question may hang on: leaving it out would train on something else than the row says.
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
# Members of an object that is no row itself but holds the list of rows.
LISTS_OF_ROWS = ("data", "rows", "examples", "records", "items", "samples", "instances", "train")
