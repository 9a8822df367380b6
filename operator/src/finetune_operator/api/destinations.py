"""Destinations of a FineTuneJob's artifacts as typed values."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from finetune_operator.api.names import ObjectName
from finetune_operator.api.sources import CloudObject, KeyRef, RelativePath, S3Object, SecretRef, SpecValue

DestinationName = Annotated[
    str, Field(min_length=1, max_length=20, pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")
]


class OutputClaim(SpecValue):
    """The folder for artifacts in a claim. The default path is the job's name."""

    claim_name: ObjectName
    path: RelativePath | None = None

    def folder(self, job_name: str) -> str:
        """The folder's path inside the claim."""
        return job_name if self.path is None else self.path


class Destination(SpecValue):
    """The destination of artifacts."""

    persistent_volume_claim: OutputClaim


REFERENCE = r"^([A-Za-z0-9.-]+|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?/[a-z0-9]+([._/-]+[a-z0-9]+)*:[A-Za-z0-9_][A-Za-z0-9._-]{0,127}$"
"""HOST[:PORT]/REPOSITORY:TAG. The CRD has the same pattern."""


IMAGE_TAG = r"^[A-Za-z0-9_][A-Za-z0-9._-]{0,127}$"
"""Tag of an image. The CRD has the same pattern."""


class RegistryTag(SpecValue):
    """A tag in an OCI registry, and a second one for the same files as an image.

    Without `image_tag`, the second one is the first with `-image`. Without `secret_ref` the registry must take artifacts
    from anybody.
    """

    reference: Annotated[str, Field(min_length=1, max_length=512, pattern=REFERENCE)]
    image_tag: Annotated[str, Field(min_length=1, max_length=128, pattern=IMAGE_TAG)] | None = None
    secret_ref: SecretRef | None = None

    @property
    def references(self) -> tuple[str, str]:
        """The references of the artifact and of the image. The trainer makes the same second tag."""
        repository, _, tag = self.reference.rpartition(":")
        return self.reference, f"{repository}:{self.image_tag or f'{tag[:122]}-image'}"


REPOSITORY = r"^[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*$"
"""NAMESPACE/NAME on a Hugging Face hub. The CRD has the same pattern."""
BRANCH = r"^[A-Za-z0-9][A-Za-z0-9._/-]*$"
"""Name of a branch. The CRD has the same pattern."""
DEFAULT_BRANCH = "main"


class HubRepository(SpecValue):
    """A branch of a model repository on a Hugging Face hub. None stands for private, and for the branch `main`."""

    repository: Annotated[str, Field(min_length=1, max_length=256, pattern=REPOSITORY)]
    private: bool | None = None
    revision: Annotated[str, Field(min_length=1, max_length=256, pattern=BRANCH)] | None = None
    token_secret_ref: KeyRef

    @property
    def branch(self) -> str:
        """The branch that gets the commit."""
        return self.revision or DEFAULT_BRANCH

    @property
    def uri(self) -> str:
        """The place, for people. The trainer makes the same text."""
        return f"hf://{self.repository}@{self.branch}"


class NamedDestination(SpecValue):
    """One of several destinations. Exactly one member is set, beside the name and `overwrite`.

    `overwrite` replaces artifacts of another job. None stands for no.
    """

    name: DestinationName
    persistent_volume_claim: OutputClaim | None = None
    s3: S3Object | None = None
    gcs: CloudObject | None = None
    azure: CloudObject | None = None
    oci: RegistryTag | None = None
    hugging_face: HubRepository | None = None
    overwrite: bool | None = None

    @property
    def secret(self) -> SecretRef | None:
        """The whole Secret with the credentials, if there is one."""
        place = self.object_store or self.oci
        return None if place is None else place.secret_ref

    @property
    def object_store(self) -> S3Object | CloudObject | None:
        """The member that refers to an object store, if there is one."""
        return self.s3 or self.gcs or self.azure


Destinations = Annotated[tuple[NamedDestination, ...], Field(min_length=1, max_length=8)]
