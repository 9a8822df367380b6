"""What is fetched, a dataset or a model: its reasons and its words in messages."""

from __future__ import annotations

from dataclasses import dataclass

from finetune_trainer.errors import Reason, StageError


@dataclass(frozen=True)
class Subject:
    """The reasons with which fetching a thing of this kind can end. `name` is also its member in the spec."""

    name: str
    not_found: Reason
    access_denied: Reason
    unavailable: Reason
    address_forbidden: Reason

    def forbidden_address(self) -> StageError:
        """Make the error for a server whose every address is forbidden."""
        return StageError(
            self.address_forbidden,
            f"the {self.name}'s server must have a public address, found a private, loopback, link-local or "
            "reserved one; the administrator can allow it with trainer.limits.allowPrivateAddresses",
        )


DATASET = Subject(
    "dataset",
    Reason.DATASET_NOT_FOUND,
    Reason.DATASET_ACCESS_DENIED,
    Reason.DATASET_UNAVAILABLE,
    Reason.DATASET_ADDRESS_FORBIDDEN,
)
MODEL = Subject(
    "model",
    Reason.MODEL_NOT_FOUND,
    Reason.MODEL_ACCESS_DENIED,
    Reason.MODEL_UNAVAILABLE,
    Reason.MODEL_ADDRESS_FORBIDDEN,
)
