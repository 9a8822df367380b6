"""The places that receive copies of the artifacts: `output.destinations` of the run spec, since contract 1.8."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from finetune_trainer.contract.object_store import ObjectStoreSource
from finetune_trainer.contract.value import Value

STEP_VARIABLE = "FINETUNE_STEP"
"""Environment variable of the containers that hold credentials of destinations. Its value names their only work.

It is a variable and no argument, so that a trainer that does not know it reads the run spec and rejects that.
"""
PROBE, PUBLISH, REPORT = "Probe", "Publish", "Report"

Name = Annotated[str, Field(min_length=1, max_length=63)]


class DirectoryDestination(Value):
    """A mounted folder; `uri` is its name for people."""

    kind: Literal["Directory"]
    name: Name
    path: Path
    uri: str
    overwrite: bool = False

    @property
    def address(self) -> str:
        """The place, for people."""
        return self.uri


class ObjectStoreDestination(ObjectStoreSource):
    """A prefix in an object store. With `overwrite`, artifacts of another job there are replaced."""

    name: Name
    overwrite: bool = False

    @property
    def address(self) -> str:
        """The place, for people."""
        return self.uri


class RegistryDestination(Value):
    """A tag in an OCI registry, in the form HOST[:PORT]/REPOSITORY:TAG.

    `image_tag` names the same files as an ordinary image; see `image_tag_of`. It is there since contract 1.9.
    Environment variables that begin with `credentials_prefix` hold `username` and `password`.
    """

    kind: Literal["Oci"]
    name: Name
    reference: str
    image_tag: Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9._-]{0,127}$")] | None = None
    credentials_prefix: str | None = None
    overwrite: bool = False

    @property
    def address(self) -> str:
        """The place, for people."""
        return f"oci://{self.reference}"

    def image_tag_of(self, tag: str) -> str:
        """Return the tag of the image beside `tag`. The operator makes the same one, and a tag has at most 128 characters."""
        return self.image_tag or f"{tag[:122]}-image"


class HubDestination(Value):
    """A branch of a model repository on a Hugging Face hub. It is created if it is missing, by default as private.

    The environment variable `token_variable` holds an access token that may write.
    """

    kind: Literal["HuggingFace"]
    name: Name
    repository: Annotated[
        str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=256)
    ]
    revision: Annotated[str, Field(min_length=1, max_length=256)] = "main"
    private: bool = True
    token_variable: str
    overwrite: bool = False

    @property
    def address(self) -> str:
        """The place, for people, in the form of the hub's own tools."""
        return f"hf://{self.repository}@{self.revision}"


NamedDestination = Annotated[
    DirectoryDestination | ObjectStoreDestination | RegistryDestination | HubDestination,
    Field(discriminator="kind"),
]
