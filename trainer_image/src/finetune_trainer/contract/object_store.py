"""A place in an object store, as the run spec names it."""

from __future__ import annotations

from typing import Literal

from finetune_trainer.contract.value import Value


class ObjectStoreSource(Value):
    """An object, or for a model a prefix, in an S3-compatible store, Google Cloud Storage or Azure.

    `uri` is s3://BUCKET/KEY, gs://BUCKET/KEY or az://ACCOUNT/CONTAINER/KEY. `endpoint` replaces the cloud's own
    URL. Environment variables that begin with `credentials_prefix` hold the credentials under the names that the
    cloud's own tools use (AWS_ACCESS_KEY_ID, GOOGLE_SERVICE_ACCOUNT_KEY, AZURE_STORAGE_ACCOUNT_KEY, ...);
    without a prefix the pod's own identity is used.
    """

    kind: Literal["ObjectStore"]
    uri: str
    endpoint: str | None = None
    region: str | None = None
    credentials_prefix: str | None = None
