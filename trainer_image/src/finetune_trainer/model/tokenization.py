"""Identifies how a folder's files turn a conversation into token ids: the tokenizer and the chat template."""

from __future__ import annotations

import hashlib
import json
from fnmatch import fnmatch
from typing import TYPE_CHECKING, Any

from finetune_trainer.workspace.digests import digest_of_files
from finetune_trainer.workspace.layout import digest_of

if TYPE_CHECKING:
    from pathlib import Path

_TEMPLATE = "chat_template.jinja"
_CONFIG = "tokenizer_config.json"
_VOCABULARIES = (
    "tokenizer.json",
    "added_tokens.json",
    "special_tokens_map.json",
    "vocab.*",
    "merges.txt",
    "tekken.json",
    "*.model",
    "*.tiktoken",
)
# An artifact keeps its template in one place and names no code, which changes no token.
_WITHOUT_EFFECT = ("chat_template", "auto_map")


def tokenization_digest(folder: Path) -> str:
    """Return a digest that is equal for two folders whose tokenizer files and chat template are equal.

    The template is the one that servers use: chat_template.jinja, else the member of tokenizer_config.json.
    """
    config = _read(folder / _CONFIG)
    template = folder / _TEMPLATE
    files = {
        path.name: "sha256:" + hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.iterdir())
        if path.is_file() and any(fnmatch(path.name, pattern) for pattern in _VOCABULARIES)
    }
    return digest_of(
        {
            "template": template.read_text(encoding="utf-8")
            if template.is_file()
            else config.get("chat_template"),
            "config": {name: value for name, value in config.items() if name not in _WITHOUT_EFFECT},
            "files": digest_of_files(files),
        }
    )


def _read(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return document if isinstance(document, dict) else {}
