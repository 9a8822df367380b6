"""The Secrets of sources and destinations and their environment variables, for pods and for a run without a cluster.

The operator reads no Secret. A pod names its Secrets, and the kubelet sets the variables.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from finetune_operator.api.sources import DatasetSource, KeyRef
from finetune_operator.api.spec import FineTuneJobSpec

MODEL_PREFIX = "FINETUNE_MODEL_"
DATASET_PREFIX = "FINETUNE_DATASET_"
VALIDATION_PREFIX = "FINETUNE_VALIDATION_"


def destination_prefix(name: str) -> str:
    """The prefix of the credentials of the entry `name` of `output.destinations`."""
    return f"FINETUNE_DESTINATION_{name.upper().replace('-', '_')}_"


def url_variable(prefix: str) -> str:
    """The variable that holds a URL."""
    return f"{prefix}URL"


def token_variable(prefix: str) -> str:
    """The variable that holds a hub's access token."""
    return f"{prefix}TOKEN"


@dataclass(frozen=True)
class SecretVariable:
    """One key of a Secret as an environment variable."""

    variable: str
    reference: KeyRef


@dataclass(frozen=True)
class SecretPrefix:
    """Every key of a Secret as an environment variable with the name `prefix` + key.

    Because of the prefix, no Secret can set a variable that has a meaning for the process, such as PATH.
    """

    prefix: str
    secret: str


def secret_variables(spec: FineTuneJobSpec) -> list[SecretVariable]:
    """The single keys to which the sources refer: URLs and access tokens."""
    found = []
    hub = spec.model.source.hugging_face
    if hub is not None and hub.token_secret_ref is not None:
        found.append(SecretVariable(token_variable(MODEL_PREFIX), hub.token_secret_ref))
    for prefix, source in dataset_sources(spec):
        if source.url is not None:
            found.append(SecretVariable(url_variable(prefix), source.url.secret_key_ref))
        if source.hugging_face is not None and source.hugging_face.token_secret_ref is not None:
            found.append(SecretVariable(token_variable(prefix), source.hugging_face.token_secret_ref))
    return found


def secret_prefixes(spec: FineTuneJobSpec) -> list[SecretPrefix]:
    """The whole Secrets to which the sources refer: credentials of object stores."""
    stores = [(MODEL_PREFIX, spec.model.source.object_store)]
    stores += [(prefix, source.object_store) for prefix, source in dataset_sources(spec)]
    return [
        SecretPrefix(prefix, store.secret_ref.name)
        for prefix, store in stores
        if store is not None and store.secret_ref is not None
    ]


def destination_secret_prefixes(spec: FineTuneJobSpec) -> list[SecretPrefix]:
    """The whole Secrets to which the destinations refer: credentials of stores and registries."""
    return [
        SecretPrefix(destination_prefix(entry.name), entry.secret.name)
        for entry in spec.output.destinations or ()
        if entry.secret is not None
    ]


def destination_secret_variables(spec: FineTuneJobSpec) -> list[SecretVariable]:
    """The single keys to which the destinations refer: access tokens of hubs."""
    return [
        SecretVariable(token_variable(destination_prefix(entry.name)), entry.hugging_face.token_secret_ref)
        for entry in spec.output.destinations or ()
        if entry.hugging_face is not None
    ]


def dataset_sources(spec: FineTuneJobSpec) -> Iterator[tuple[str, DatasetSource]]:
    """The source of the dataset and, if there is one, of the validation rows, each with its prefix."""
    yield DATASET_PREFIX, spec.dataset.source
    if spec.dataset.validation.source is not None:
        yield VALIDATION_PREFIX, spec.dataset.validation.source
