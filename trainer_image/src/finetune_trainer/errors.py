"""Typed failures of a stage. Each reason is documented in contract/reasons.json and docs/failure-modes.md."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


class Reason(StrEnum):
    """The reason of a stage that did not succeed."""

    INVALID_RUN_SPEC = "InvalidRunSpec"
    INVALID_NETWORK_SETTINGS = "InvalidNetworkSettings"
    DATASET_NOT_FOUND = "DatasetNotFound"
    DATASET_ACCESS_DENIED = "DatasetAccessDenied"
    DATASET_URL_EXPIRED = "DatasetUrlExpired"
    DATASET_ADDRESS_FORBIDDEN = "DatasetAddressForbidden"
    DATASET_UNAVAILABLE = "DatasetUnavailable"
    DATASET_TOO_LARGE = "DatasetTooLarge"
    MALFORMED_DATASET = "MalformedDataset"
    INVALID_DATASET = "InvalidDataset"
    MODEL_NOT_FOUND = "ModelNotFound"
    MODEL_ACCESS_DENIED = "ModelAccessDenied"
    MODEL_UNAVAILABLE = "ModelUnavailable"
    MODEL_ADDRESS_FORBIDDEN = "ModelAddressForbidden"
    INVALID_MODEL = "InvalidModel"
    UNSUPPORTED_MODEL = "UnsupportedModel"
    MODEL_UNPROVABLE = "ModelUnprovable"
    MODEL_SIZE_UNKNOWN = "ModelSizeUnknown"
    LENGTH_NOT_SUPPORTED = "LengthNotSupported"
    CHAT_TEMPLATE_MISSING = "ChatTemplateMissing"
    CHAT_TEMPLATE_UNPROVABLE = "ChatTemplateUnprovable"
    GPU_NOT_VISIBLE = "GpuNotVisible"
    GPU_OUT_OF_MEMORY = "GpuOutOfMemory"
    HOST_OUT_OF_MEMORY = "HostOutOfMemory"
    NON_FINITE_LOSS = "NonFiniteLoss"
    QUANTIZATION_MISMATCH = "QuantizationMismatch"
    ADAPTER_UNTRAINED = "AdapterUntrained"
    ARTIFACT_VERIFICATION_FAILED = "ArtifactVerificationFailed"
    WITHHELD_BY_GATE = "WithheldByGate"
    DESTINATION_UNWRITABLE = "DestinationUnwritable"
    DESTINATION_NOT_FOUND = "DestinationNotFound"
    DESTINATION_ACCESS_DENIED = "DestinationAccessDenied"
    DESTINATION_UNAVAILABLE = "DestinationUnavailable"
    DESTINATION_ADDRESS_FORBIDDEN = "DestinationAddressForbidden"
    WORKSPACE_FULL = "WorkspaceFull"
    WORKSPACE_ACCESS_DENIED = "WorkspaceAccessDenied"
    INTERNAL_ERROR = "InternalError"
    INTERRUPTED = "Interrupted"


class StageError(Exception):
    """A stage cannot continue. The message says what must be, what was found and the remedy; it holds no secret.

    `rank` is the one of several ranks that failed first; None if there is one process, or if no single rank failed.
    """

    def __init__(self, reason: Reason, message: str, rank: int | None = None) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.rank = rank


def chain_of(error: BaseException) -> Iterator[BaseException]:
    """Yield `error` and the errors before it, as Python's traceback shows them, up to one that has a reason."""
    seen: set[int] = set()
    waiting = [error]
    while waiting:
        found = waiting.pop()
        if id(found) in seen or isinstance(found, StageError):
            continue
        seen.add(id(found))
        yield found
        if isinstance(found, BaseExceptionGroup):
            waiting.extend(found.exceptions)
        before = found.__cause__ or (None if found.__suppress_context__ else found.__context__)
        if before is not None:
            waiting.append(before)
