"""What is fetched or published: datasets, models and destinations, each with its reasons and its name in messages."""

from __future__ import annotations

from dataclasses import dataclass

from finetune_trainer.errors import Reason, StageError


@dataclass(frozen=True)
class FetchTarget:
    """A dataset, a model or a destination: the reasons for which its transfer can fail.

    `name` is its name in messages, and `given_as` its field in the spec. The other texts are parts of messages: what
    credentials must allow, what the trainer does, what a server must do, and what to do about expired credentials.
    """

    name: str
    not_found: Reason
    access_denied: Reason
    unavailable: Reason
    address_forbidden: Reason
    malformed: Reason
    given_as: str = ""
    access: str = "reading it"
    transfer: str = "download"
    service: str = "send"
    renewal: str = "renew the Secret and create the job again"

    @property
    def field(self) -> str:
        """Its field in the spec."""
        return self.given_as or f"{self.name}.source"

    def forbidden_address(self) -> StageError:
        """Make the error for a server that has no allowed address."""
        return StageError(
            self.address_forbidden,
            f"the {self.name}'s server must have a public address, found a private, loopback, link-local or "
            "reserved one; an administrator can allow such addresses with trainer.limits.allowPrivateAddresses",
        )

    def forbidden_proxy(self) -> StageError:
        """Make the error for a job's proxy that has no allowed address."""
        return StageError(
            self.address_forbidden,
            "the job's proxy must have a public address, found a private, loopback, link-local or reserved one; an "
            "administrator can name the proxy with trainer.network in the chart",
        )


DATASET = FetchTarget(
    "dataset",
    Reason.DATASET_NOT_FOUND,
    Reason.DATASET_ACCESS_DENIED,
    Reason.DATASET_UNAVAILABLE,
    Reason.DATASET_ADDRESS_FORBIDDEN,
    Reason.MALFORMED_DATASET,
)
MODEL = FetchTarget(
    "model",
    Reason.MODEL_NOT_FOUND,
    Reason.MODEL_ACCESS_DENIED,
    Reason.MODEL_UNAVAILABLE,
    Reason.MODEL_ADDRESS_FORBIDDEN,
    Reason.INVALID_MODEL,
)


def destination_target(name: str) -> FetchTarget:
    """Return the target for the entry `name` of `output.destinations`."""
    return FetchTarget(
        f"destination {name}",
        Reason.DESTINATION_NOT_FOUND,
        Reason.DESTINATION_ACCESS_DENIED,
        Reason.DESTINATION_UNAVAILABLE,
        Reason.DESTINATION_ADDRESS_FORBIDDEN,
        Reason.DESTINATION_UNWRITABLE,
        given_as=f"output.destinations[{name}]",
        access="writing, reading and deleting there",
        transfer="publish to",
        service="take files for",
        renewal="renew the Secret",
    )
