"""Typed failures of a stage. Each reason is documented in contract/reasons.json and docs/failure-modes.md."""

from __future__ import annotations

from enum import StrEnum


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
    LENGTH_NOT_SUPPORTED = "LengthNotSupported"
    CHAT_TEMPLATE_MISSING = "ChatTemplateMissing"
    CHAT_TEMPLATE_UNPROVABLE = "ChatTemplateUnprovable"
    GPU_NOT_VISIBLE = "GpuNotVisible"
    GPU_OUT_OF_MEMORY = "GpuOutOfMemory"
    NON_FINITE_LOSS = "NonFiniteLoss"
    QUANTIZATION_MISMATCH = "QuantizationMismatch"
    ADAPTER_UNTRAINED = "AdapterUntrained"
    ARTIFACT_VERIFICATION_FAILED = "ArtifactVerificationFailed"
    WITHHELD_BY_GATE = "WithheldByGate"
    DESTINATION_UNWRITABLE = "DestinationUnwritable"
    WORKSPACE_FULL = "WorkspaceFull"
    WORKSPACE_ACCESS_DENIED = "WorkspaceAccessDenied"
    INTERNAL_ERROR = "InternalError"
    INTERRUPTED = "Interrupted"


class StageError(Exception):
    """A stage cannot continue. The message says what must be, what was found and the remedy; it holds no secret."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
