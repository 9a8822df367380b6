"""The end tokens in a model's generation config."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


def end_token_ids(folder: Path) -> tuple[int, ...]:
    """Return `eos_token_id` of generation_config.json and config.json, if these name any."""
    found: list[int] = []
    for name in ("generation_config.json", "config.json"):
        try:
            document = json.loads((folder / name).read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            continue  # neither file is required: the tokenizer also names an end token
        value = document.get("eos_token_id") if isinstance(document, dict) else None
        values = value if isinstance(value, list) else [value]
        found.extend(item for item in values if isinstance(item, int) and item not in found)
    return tuple(found)
