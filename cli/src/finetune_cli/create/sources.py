"""Short forms of models, datasets and destinations, such as `hf://ORG/NAME`, as members of a spec."""

from __future__ import annotations

import re
from typing import Any

from finetune_cli.errors import UsageError

MODEL_FORMS = "hf://ORG/NAME[@REVISION], pvc://CLAIM/PATH, s3://, gs:// or az://"
DATASET_FORMS = f"{MODEL_FORMS}, configmap://NAME/KEY, or secret://NAME/KEY with a URL"
DESTINATION_FORMS = "pvc://CLAIM[/PATH], s3://, gs://, az://, oci://REGISTRY/NAME[:TAG] or hf://ORG/NAME"
_REPOSITORY = re.compile(r"(?P<repository>[\w.-]+/[\w.-]+)(?:@(?P<revision>[^@\s]+))?")
_STORES = {"s3": "s3", "gs": "gcs", "az": "azure"}


def model_source(text: str, secret: str | None) -> dict[str, Any]:
    """Return `model.source`. Raises UsageError."""
    scheme, rest = _split(text, MODEL_FORMS)
    if scheme == "hf":
        return {"huggingFace": _repository(text, rest, MODEL_FORMS) | _token(secret)}
    if scheme == "pvc":
        return {"persistentVolumeClaim": _claim(rest)}
    if scheme in _STORES:
        return {_STORES[scheme]: {"uri": text} | _whole_secret(secret)}
    raise _unknown(text, MODEL_FORMS)


def dataset_source(text: str, secret: str | None) -> dict[str, Any]:
    """Return `dataset.source`. Raises UsageError."""
    scheme, rest = _split(text, DATASET_FORMS)
    if scheme in {"http", "https"}:
        raise UsageError(
            f"a URL must be in a Secret, because it may be signed, found {scheme}://; run kubectl create secret generic "
            "NAME --from-literal=url=URL, and pass secret://NAME/url"
        )
    if scheme in {"configmap", "secret"}:
        name, key = _key(text, rest)
        reference = {"name": name, "key": key}
        return {"configMap": reference} if scheme == "configmap" else {"url": {"secretKeyRef": reference}}
    if scheme == "pvc" and "/" not in rest:
        raise UsageError(f"a dataset must be a file in a claim, pvc://CLAIM/PATH, found {text!r}")
    if scheme not in {"hf", "pvc", *_STORES}:
        raise _unknown(text, DATASET_FORMS)
    return model_source(text, secret)


def output_of(texts: tuple[str, ...], secret: str | None) -> dict[str, Any]:
    """Return `output`: one claim as `destination`, everything else as `destinations`. Raises UsageError."""
    found = [_destination(text, secret) for text in texts]
    if len(found) == 1 and "persistentVolumeClaim" in found[0]:
        return {"destination": found[0]}
    named = []
    for number, destination in enumerate(found, start=1):
        kind = next(iter(destination))
        short = {"persistentVolumeClaim": "claim", "huggingFace": "hub"}.get(kind, kind)
        again = sum(kind in other for other in found) > 1
        named.append({"name": f"{short}-{number}" if again else short, **destination})
    return {"destinations": named}


def _destination(text: str, secret: str | None) -> dict[str, Any]:
    scheme, rest = _split(text, DESTINATION_FORMS)
    if scheme == "pvc":
        return {"persistentVolumeClaim": _claim(rest)}
    if scheme in _STORES:
        return {_STORES[scheme]: {"uri": text} | _whole_secret(secret)}
    if scheme == "oci":
        return {"oci": {"reference": rest} | _whole_secret(secret)}
    if scheme == "hf":
        return {"huggingFace": _repository(text, rest, DESTINATION_FORMS) | _token(secret)}
    raise _unknown(text, DESTINATION_FORMS)


def _split(text: str, forms: str) -> tuple[str, str]:
    """Return scheme and rest. ORG/NAME alone is a repository of the hub."""
    scheme, separator, rest = text.partition("://")
    if not separator:
        if _REPOSITORY.fullmatch(text):
            return "hf", text
        raise _unknown(text, forms)
    if not rest:
        raise _unknown(text, forms)
    return scheme.lower(), rest


def _unknown(text: str, forms: str) -> UsageError:
    # A URL may contain a password or a signature.
    shown = text.partition("?")[0].rpartition("@")[2] if "://" in text else text
    return UsageError(f"the place must be {forms}, found {shown!r}")


def _repository(text: str, rest: str, forms: str) -> dict[str, Any]:
    matched = _REPOSITORY.fullmatch(rest)
    if matched is None:
        raise _unknown(text, forms)
    return {name: value for name, value in matched.groupdict().items() if value is not None}


def _claim(rest: str) -> dict[str, Any]:
    name, _, path = rest.partition("/")
    return {"claimName": name, **({"path": path.strip("/")} if path.strip("/") else {})}


def _key(text: str, rest: str) -> tuple[str, str]:
    name, separator, key = rest.partition("/")
    if not separator or not name or not key:
        raise UsageError(f"a key must be NAME/KEY, found {text!r}")
    return name, key


def _token(secret: str | None) -> dict[str, Any]:
    if secret is None:
        return {}
    name, key = _key(secret, secret if "/" in secret else f"{secret}/token")
    return {"tokenSecretRef": {"name": name, "key": key}}


def _whole_secret(secret: str | None) -> dict[str, Any]:
    return {} if secret is None else {"secretRef": {"name": secret}}
