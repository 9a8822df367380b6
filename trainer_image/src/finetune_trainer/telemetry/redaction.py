"""Removes secrets from every text that leaves the process."""

from __future__ import annotations

import base64
import html
import json
import re
from collections.abc import Iterable, Mapping
from urllib.parse import parse_qsl, quote, quote_plus, unquote, unquote_plus, urlsplit

from finetune_trainer.contract.credentials import NAMES, REGIONS, clean_secret
from finetune_trainer.contract.destinations import HubDestination, RegistryDestination
from finetune_trainer.contract.network import PROXY_VARIABLES
from finetune_trainer.contract.object_store import ObjectStoreSource
from finetune_trainer.contract.run_spec import (
    HubDatasetSource,
    HuggingFaceSource,
    RunSpec,
    UrlSource,
    ValidationSource,
)

MASK = "[redacted]"
# Shorter fragments of a URL (an API version, a flag) are no secret, and their mask would damage ordinary words.
_SHORTEST_FRAGMENT = 8
_SHORTEST_PATH = 16  # a long path may be a file's only protection; a short one is an ordinary name
_QUERY_OF_ANY_URL = re.compile(r"(\bhttps?://[^\s?#\"'<>]*)\?[^\s\"'<>]+", re.IGNORECASE)
_USER_OF_ANY_URL = re.compile(r"(\bhttps?://)[^\s/@\"'<>]+@", re.IGNORECASE)
_ESCAPE = re.compile(r"%[0-9A-Fa-f]{2}")
_PRINTABLE = "".join(map(chr, range(0x21, 0x7F)))


class Redactor:
    """Replaces secret values, and the parts that would reveal a secret URL, with a mask.

    It finds each value as it is, percent-encoded, form-encoded, and escaped for JSON or HTML.
    """

    def __init__(self, secrets: Iterable[str]) -> None:
        parts: set[str] = set()
        for secret in secrets:
            for fragment in _fragments(secret):
                parts.update(_forms(fragment))
        longest_first = sorted(parts, key=lambda part: (-len(part), part))
        self._pattern = re.compile("|".join(map(_matcher, longest_first))) if longest_first else None

    def __call__(self, text: str) -> str:
        """Return `text` without any known secret, and without the query and user of any other URL."""
        if self._pattern is not None:
            text = self._pattern.sub(MASK, text)
        text = _QUERY_OF_ANY_URL.sub(rf"\1?{MASK}", text)
        return _USER_OF_ANY_URL.sub(rf"\1{MASK}@", text)


def _fragments(secret: str) -> set[str]:
    """Return a secret and its secret parts: lines, values of JSON, and path and query of a URL."""
    whole = clean_secret(secret)
    if not whole:
        return set()
    parts = {line.strip() for line in whole.splitlines()}
    parts.update(_values(whole))
    if "://" in whole:
        parts.update(_url_parts(whole))
    elif "=" in whole:
        parts.update(_query_parts(whole.lstrip("?")))  # a shared access signature
    return {whole, unquote(whole)} | {part for part in parts if len(part) >= _SHORTEST_FRAGMENT}


def _values(text: str) -> set[str]:
    """Return the secret members of a service account's key, and each of their lines."""
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        return set()
    if not isinstance(document, dict):
        return set()
    found = [
        str(document[key]) for key in ("private_key", "private_key_id", "refresh_token") if key in document
    ]
    return {line.strip() for value in found for line in (value, *value.splitlines())}


def _url_parts(text: str) -> set[str]:
    try:
        url = urlsplit(text)
    except ValueError:
        return set()
    target = url.path + (f"?{url.query}" if url.query else "")
    user = url.netloc.rpartition("@")[0]
    basic = base64.b64encode(unquote(user).encode("utf-8", "surrogateescape")).decode()
    path = {url.path} if len(url.path) >= _SHORTEST_PATH else set()
    return {target, url.fragment, user, user.partition(":")[2], basic} | path | _query_parts(url.query)


def _query_parts(query: str) -> set[str]:
    parts = {query, unquote(query), unquote_plus(query)}
    parts.update(pair.partition("=")[2] for pair in re.split("[&;]", query))
    parts.update(value for _, value in parse_qsl(query))
    return parts


def _forms(text: str) -> set[str]:
    """Return all forms in which a secret may appear in text."""
    raw = text.encode("utf-8", "surrogateescape")
    forms = {
        text,
        unquote(text),
        unquote_plus(text),
        quote(raw),
        quote(raw, safe=""),
        quote(raw, safe=_PRINTABLE),
        quote_plus(raw),
        text.replace("\n", "\\n"),
        html.escape(text),
    }
    for form in tuple(forms):
        forms.update((json.dumps(form)[1:-1], json.dumps(form, ensure_ascii=False)[1:-1]))
    return {form for form in forms if form.strip()}


def _matcher(form: str) -> str:
    """Return the regular expression of a form; the digits of a percent escape match in both cases."""
    return _ESCAPE.sub(lambda match: f"%(?i:{match[0][1:]})", re.escape(form))


def secrets_of(run: RunSpec, environment: Mapping[str, str]) -> list[str]:
    """Return the values of the secret environment variables that the run spec names, if set.

    The users and passwords of proxies are added, but not the proxies' addresses.
    """
    sources: list[object] = [run.model.source, run.dataset.source]
    if isinstance(run.dataset.validation, ValidationSource):
        sources.append(run.dataset.validation.source)
    sources += run.output.destinations
    values: list[str | None] = []
    for source in sources:
        if (
            isinstance(source, HuggingFaceSource | HubDatasetSource | HubDestination)
            and source.token_variable
        ):
            values.append(environment.get(source.token_variable))
        elif isinstance(source, UrlSource):
            values.append(environment.get(source.url_variable))
        elif isinstance(source, ObjectStoreSource):
            values += _store_secrets(source.credentials_prefix or "", environment)
        elif isinstance(source, RegistryDestination) and source.credentials_prefix:
            values.append(environment.get(source.credentials_prefix + "password"))
    for tracker in (run.tracking.mlflow, run.tracking.model_registry) if run.tracking else ():
        if tracker is not None and tracker.credentials_prefix:
            values += _store_secrets(tracker.credentials_prefix, environment)
    values += _proxy_secrets(environment)
    return list(dict.fromkeys(value for value in values if value and value.strip()))


def _proxy_secrets(environment: Mapping[str, str]) -> list[str]:
    """Return user and password of each proxy, as written, decoded, and as the Proxy-Authorization header sends them."""
    found = []
    for name in PROXY_VARIABLES:
        for value in (environment.get(name, ""), environment.get(name.lower(), "")):
            user = value.partition("://")[2] or value
            user = user.partition("/")[0].rpartition("@")[0]
            password = unquote(user.partition(":")[2])
            # A short word may be an ordinary one, and its mask would damage every text.
            found += [part for part in (user, password) if len(part) >= _SHORTEST_FRAGMENT]
            if user:
                found.append(base64.b64encode(unquote(user).encode()).decode())
    return found


def _store_secrets(prefix: str, environment: Mapping[str, str]) -> list[str]:
    """Return the credentials under a prefix. A prefix that is not empty also covers the Secret's other values.

    Regions are no secret.
    """
    found = [value for name, value in environment.items() if name.removeprefix(prefix) in NAMES]
    if prefix:
        others = {
            name: value
            for name, value in environment.items()
            if name.startswith(prefix) and name.removeprefix(prefix) not in REGIONS
        }
        found += [value for value in others.values() if len(value) >= _SHORTEST_FRAGMENT]
    return found
