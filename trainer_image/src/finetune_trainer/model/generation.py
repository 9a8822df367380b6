"""The end tokens in a model's generation config: where a server stops, and how an artifact gets the learned ends."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

GENERATION_CONFIG = "generation_config.json"
_CONFIG = "config.json"
# transformers copies these from config.json if a model has no generation config.
_COPIED = ("bos_token_id", "pad_token_id")


def end_token_ids(folder: Path) -> tuple[int, ...]:
    """Return `eos_token_id` of generation_config.json and config.json, if these name any."""
    found = (_ids(_read(folder / name) or {}) for name in (GENERATION_CONFIG, _CONFIG))
    return tuple(dict.fromkeys(token_id for ids in found for token_id in ids))


def stop_token_ids(folder: Path) -> tuple[int, ...]:
    """Return the tokens at which a server of the model in `folder` stops."""
    return stops_of(_read(folder / GENERATION_CONFIG), _read(folder / _CONFIG) or {})


def stops_of(generation: Mapping[str, Any] | None, config: Mapping[str, Any]) -> tuple[int, ...]:
    """Return the tokens at which a server stops, from the content of both files.

    If there is a generation config, only it counts, even if it names none. Without one (None), servers make one from
    config.json.
    """
    return _ids(config if generation is None else generation)


def with_stops(
    generation: Mapping[str, Any] | None, config: Mapping[str, Any], learned: Sequence[int]
) -> dict[str, Any] | None:
    """Return a generation config that stops at all `learned` tokens; None if the model already does.

    The base's own tokens stay and come first. If `generation` is None, the new config has what servers would take from
    `config`.
    """
    stops = stops_of(generation, config)
    missing = [token_id for token_id in dict.fromkeys(learned) if token_id not in stops]
    if not missing:
        return None
    if generation is None:
        generation = {name: config[name] for name in _COPIED if config.get(name) is not None}
    return {**generation, "eos_token_id": [*stops, *missing]}


def read_generation_config(folder: Path) -> dict[str, Any] | None:
    """Return the generation config of `folder`; None if there is none that servers can read."""
    return _read(folder / GENERATION_CONFIG)


def _ids(document: Mapping[str, Any]) -> tuple[int, ...]:
    value = document.get("eos_token_id")
    values = value if isinstance(value, list) else [value]
    return tuple(
        dict.fromkeys(item for item in values if isinstance(item, int) and not isinstance(item, bool))
    )


def _read(path: Path) -> dict[str, Any] | None:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None  # neither file is required: the tokenizer also names an end token
    return document if isinstance(document, dict) else None
