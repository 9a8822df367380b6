"""Sources of a FineTuneJob's model and rows as typed values, and the small values that they share."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

from finetune_operator.api.names import DataKey, ObjectName

RelativePath = Annotated[str, Field(max_length=1024)]
"""A path inside a volume or repository, not absolute and without `..`. The empty path is the volume's root."""
Uri = Annotated[str, Field(min_length=1, max_length=1024)]

S3_URI = r"^s3://[A-Za-z0-9][A-Za-z0-9._-]{1,253}[A-Za-z0-9]/[^/].*$"
GCS_URI = r"^gs://[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]/[^/].*$"
AZURE_URI = r"^az://[a-z0-9]{3,24}/[a-z0-9$][a-z0-9-]{1,62}/[^/].*$"
ENDPOINT = r"^https?://[^/?#@ ]+(/[^?#@ ]*)?$"
"""The CRD's rules have the same patterns, and a test compares them. None accepts a user, a query or a signature."""


class SpecValue(BaseModel):
    """An immutable value in camelCase that rejects unknown members."""

    model_config = ConfigDict(
        alias_generator=to_camel,
        populate_by_name=True,
        extra="forbid",
        frozen=True,
        coerce_numbers_to_str=True,
    )


class KeyRef(SpecValue):
    """A key of a Secret or ConfigMap in the job's namespace."""

    name: ObjectName
    key: DataKey


class SecretRef(SpecValue):
    """A whole Secret in the job's namespace. Each key is the name of a credential."""

    name: ObjectName


class ClaimPath(SpecValue):
    """A path inside a PersistentVolumeClaim of the job's namespace."""

    claim_name: ObjectName
    path: RelativePath = ""


class S3Object(SpecValue):
    """An object, or for a model a prefix, in an S3-compatible store. Without `secret_ref` the pod's identity is used."""

    uri: Uri
    endpoint: Annotated[str, Field(min_length=1, max_length=512)] | None = None
    region: Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9-]+$")] | None = None
    secret_ref: SecretRef | None = None


class CloudObject(SpecValue):
    """An object or prefix in Google Cloud Storage or Azure Blob Storage, whose endpoints follow from the URI."""

    uri: Uri
    secret_ref: SecretRef | None = None


class HuggingFaceModel(SpecValue):
    """A model repository on a Hugging Face hub."""

    repository: Annotated[str, Field(min_length=1, max_length=256)]
    revision: Annotated[str, Field(min_length=1, max_length=256)] = "main"
    token_secret_ref: KeyRef | None = None


class HuggingFaceDataset(SpecValue):
    """A dataset repository on a Hugging Face hub: the files of a split, or the file at `path`."""

    repository: Annotated[str, Field(min_length=1, max_length=256)]
    revision: Annotated[str, Field(min_length=1, max_length=256)] = "main"
    configuration: Annotated[str, Field(min_length=1, max_length=256)] | None = None
    split: Annotated[str, Field(min_length=1, max_length=128)] = "train"
    path: RelativePath | None = None
    token_secret_ref: KeyRef | None = None


class UrlSource(SpecValue):
    """A URL in a Secret."""

    secret_key_ref: KeyRef


class ModelSource(SpecValue):
    """The source of the base model. Exactly one member is set."""

    persistent_volume_claim: ClaimPath | None = None
    hugging_face: HuggingFaceModel | None = None
    s3: S3Object | None = None
    gcs: CloudObject | None = None
    azure: CloudObject | None = None

    @property
    def object_store(self) -> S3Object | CloudObject | None:
        """The member that refers to an object store, if there is one."""
        return self.s3 or self.gcs or self.azure


class DatasetSource(SpecValue):
    """The source of rows. Exactly one member is set."""

    config_map: KeyRef | None = None
    persistent_volume_claim: ClaimPath | None = None
    url: UrlSource | None = None
    hugging_face: HuggingFaceDataset | None = None
    s3: S3Object | None = None
    gcs: CloudObject | None = None
    azure: CloudObject | None = None

    @property
    def object_store(self) -> S3Object | CloudObject | None:
        """The member that refers to an object store, if there is one."""
        return self.s3 or self.gcs or self.azure
