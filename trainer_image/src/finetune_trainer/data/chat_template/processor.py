"""Finds the chat template of a processor, which models that also see or hear have next to the tokenizer's.

Servers of such a model render with the processor's template, and with the tokenizer's if the processor has none.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

TEMPLATE = "chat_template.jinja"
_MEMBER = "chat_template"
# Processors of several ages keep their template in one of these.
_FILES = ("chat_template.json", "processor_config.json")
_TOKENIZER_CONFIG = "tokenizer_config.json"


def processor_template(folder: Path) -> str | None:
    """Return the template in a processor's files; None if there is none, or only named ones without a default."""
    for name in _FILES:
        found = _default(_read(folder / name).get(_MEMBER))
        if found is not None:
            return found
    return None


def place_processor_template(folder: Path, *, first: bool) -> bool:
    """Write the processor's template to chat_template.jinja if it is the one that servers use; return whether it was written.

    It comes `first`, or only if the tokenizer has none. An existing chat_template.jinja is the template of both.
    """
    if (folder / TEMPLATE).is_file():
        return False
    template = processor_template(folder)
    if template is None or not (first or not _read(folder / _TOKENIZER_CONFIG).get(_MEMBER)):
        return False
    (folder / TEMPLATE).write_text(template, encoding="utf-8")
    return True


def _default(value: Any) -> str | None:
    if isinstance(value, dict):
        value = value.get("default")
    if isinstance(value, list):
        named = {one.get("name"): one.get("template") for one in value if isinstance(one, dict)}
        value = named.get("default")
    return value if isinstance(value, str) and value else None


def _read(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return document if isinstance(document, dict) else {}
