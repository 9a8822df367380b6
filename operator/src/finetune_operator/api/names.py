"""Forms of names and keys in Kubernetes, with the patterns that the CRD has, too.

The API server checks them in the child objects. Here and in the CRD they are checked before anything is created.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field

SUBDOMAIN = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?([.][a-z0-9]([-a-z0-9]*[a-z0-9])?)*$"
"""A DNS name (RFC 1123), which most objects have as their name."""
DNS_LABEL = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"
"""One part of such a name."""
DATA_KEY = r"^[.]?[-_a-zA-Z0-9][-._a-zA-Z0-9]*$"
"""A key of a ConfigMap or Secret, which becomes the name of a file."""
QUALIFIED_NAME = (
    r"^([a-z0-9]([-a-z0-9]*[a-z0-9])?([.][a-z0-9]([-a-z0-9]*[a-z0-9])?)*/)?"
    r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$"
)
"""The key of a label or a taint: a name, after an optional DNS name."""
ANNOTATION_KEY = (
    r"^([A-Za-z0-9]([-A-Za-z0-9]*[A-Za-z0-9])?([.][A-Za-z0-9]([-A-Za-z0-9]*[A-Za-z0-9])?)*/)?"
    r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$"
)
"""The same for annotations, whose prefix may have capital letters."""
LABEL_VALUE = r"^([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?$"
RESOURCE_NAME = (
    r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?([.][a-z0-9]([-a-z0-9]*[a-z0-9])?)*/"
    r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$"
)
MAXIMUM_PREFIX = 253
MAXIMUM_RESOURCE_PREFIX = 244
"""A quota adds `requests.` to the name of a resource."""
MAXIMUM_ANNOTATION_BYTES = 4096
"""All annotations of an object together have at most 256 KiB, and the run spec is one of them."""


def _check_prefix(key: str) -> str:
    if key.find("/") > MAXIMUM_PREFIX:
        raise ValueError(f"must have a prefix of at most {MAXIMUM_PREFIX} characters")
    return key


def _check_bytes(value: str) -> str:
    if len(value.encode("utf-8", "replace")) > MAXIMUM_ANNOTATION_BYTES:
        raise ValueError(f"must have at most {MAXIMUM_ANNOTATION_BYTES} bytes")
    return value


def _check_resource(name: str) -> str:
    own = name.startswith("requests.") or "kubernetes.io/" in name
    if own or name.find("/") > MAXIMUM_RESOURCE_PREFIX:
        raise ValueError(
            f"must be the name of an extended resource, which has a prefix of at most {MAXIMUM_RESOURCE_PREFIX} "
            "characters, not of Kubernetes itself"
        )
    return name


ObjectName = Annotated[str, Field(min_length=1, max_length=253, pattern=SUBDOMAIN)]
QueueName = Annotated[str, Field(min_length=1, max_length=63, pattern=DNS_LABEL)]
"""A queue of Kueue, which a Job names in the value of a label."""
DataKey = Annotated[str, Field(min_length=1, max_length=253, pattern=DATA_KEY)]
LabelKey = Annotated[
    str, Field(min_length=1, max_length=317, pattern=QUALIFIED_NAME), AfterValidator(_check_prefix)
]
LabelValue = Annotated[str, Field(max_length=63, pattern=LABEL_VALUE)]
AnnotationKey = Annotated[
    str, Field(min_length=1, max_length=317, pattern=ANNOTATION_KEY), AfterValidator(_check_prefix)
]
AnnotationValue = Annotated[str, Field(max_length=4096), AfterValidator(_check_bytes)]
ResourceName = Annotated[
    str, Field(min_length=3, max_length=317, pattern=RESOURCE_NAME), AfterValidator(_check_resource)
]
