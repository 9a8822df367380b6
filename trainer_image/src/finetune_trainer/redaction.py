"""Secrets are taken out of every text that leaves the process."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, unquote, urlsplit

from finetune_trainer.contract import HuggingFaceSource, UrlSource, ValidationSource

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from finetune_trainer.contract import RunSpec

MASK = "[redacted]"
# Shorter fragments of a URL (an API version, a flag) are no secret and would deface ordinary words.
_SHORTEST_FRAGMENT = 8
_QUERY_OF_ANY_URL = re.compile(r"(\bhttps?://[^\s?#\"'<>]*)\?[^\s\"'<>]+", re.IGNORECASE)
_USER_OF_ANY_URL = re.compile(r"(\bhttps?://)[^\s/@\"'<>]+@", re.IGNORECASE)


class Redactor:
    """Replaces secret values, and the parts by which a secret URL could be rebuilt, with a mask."""

    def __init__(self, secrets: Iterable[str]) -> None:
        parts: set[str] = set()
        for secret in secrets:
            parts.update(_fragments(secret))
        longest_first = sorted(parts, key=lambda part: (-len(part), part))
        self._pattern = re.compile("|".join(map(re.escape, longest_first))) if longest_first else None

    def __call__(self, text: str) -> str:
        """Return `text` without any known secret; the query and user of any other URL go too."""
        if self._pattern is not None:
            text = self._pattern.sub(MASK, text)
        text = _QUERY_OF_ANY_URL.sub(rf"\1?{MASK}", text)
        return _USER_OF_ANY_URL.sub(rf"\1{MASK}@", text)


def _fragments(secret: str) -> set[str]:
    """Every form in which a secret may turn up in text."""
    stripped = secret.strip()
    if not stripped:
        return set()
    forms = {stripped, unquote(stripped)}
    if "://" not in stripped:
        return forms
    try:
        url = urlsplit(stripped)
    except ValueError:
        return forms
    target = url.path + (f"?{url.query}" if url.query else "")
    candidates = {target, url.query, unquote(url.query), url.fragment, url.netloc.rpartition("@")[0]}
    candidates.update(pair.partition("=")[2] for pair in url.query.split("&"))
    candidates.update(value for _, value in parse_qsl(url.query))
    forms.update(part for part in candidates if len(part) >= _SHORTEST_FRAGMENT)
    return forms


def secrets_of(run: RunSpec, environment: Mapping[str, str]) -> list[str]:
    """Values of the environment variables that the run spec names as secret, where set."""
    names: list[str | None] = []
    if isinstance(run.model.source, HuggingFaceSource):
        names.append(run.model.source.token_variable)
    sources = [run.dataset.source]
    if isinstance(run.dataset.validation, ValidationSource):
        sources.append(run.dataset.validation.source)
    names.extend(source.url_variable for source in sources if isinstance(source, UrlSource))
    return [environment[name] for name in names if name is not None and environment.get(name)]
