"""The two kinds of things that are fetched, datasets and models, each with its reasons and its name in messages."""

from __future__ import annotations

from dataclasses import dataclass

from finetune_trainer.errors import Reason, StageError


@dataclass(frozen=True)
class FetchTarget:
    """A dataset or a model: the reasons for which fetching it can fail. `name` is also its field in the spec."""

    name: str
    not_found: Reason
    access_denied: Reason
    unavailable: Reason
    address_forbidden: Reason
    malformed: Reason

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
