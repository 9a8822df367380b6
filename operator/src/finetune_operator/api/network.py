"""Network settings of the stages' pods, with the same members in a FineTuneJob and in the administrator's settings."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator

from finetune_operator.api.sources import KeyRef, SpecValue

PROXY = r"^(https?://[^/?#@\s]+/?)?$"
"""The CRD and the chart have the same pattern. It accepts no user and no password, which belong into a Secret."""
NO_PROXY = r"^[-A-Za-z0-9.:*/_,\[\] ]*$"

DEFAULT_RETRY_SECONDS = 600
"""The trainer's contract has the same default."""

HUB = r"^https?://[^/?#@ ]+(/[^?#@ ]*)?$"
"""The CRD has the same pattern."""

ProxyUrl = Annotated[str, Field(max_length=512, pattern=PROXY)]


class CaBundle(SpecValue):
    """Certificate authorities as PEM in a ConfigMap or Secret of the job's namespace."""

    config_map_key_ref: KeyRef | None = None
    secret_key_ref: KeyRef | None = None

    @model_validator(mode="after")
    def _is_one(self) -> Self:
        if (self.config_map_key_ref is None) == (self.secret_key_ref is None):
            raise ValueError("must have exactly one of configMapKeyRef and secretKeyRef")
        return self


class Network(SpecValue):
    """Proxies, certificate authorities and the time to wait in an outage.

    In a job, None stands for the administrator's setting, and an empty text for none.
    """

    https_proxy: ProxyUrl | None = None
    http_proxy: ProxyUrl | None = None
    no_proxy: Annotated[str, Field(max_length=4096, pattern=NO_PROXY)] | None = None
    proxy_secret_ref: KeyRef | None = None
    ca_bundle: CaBundle | None = None
    retry_seconds: Annotated[int, Field(ge=0, le=86_400)] | None = None

    @model_validator(mode="after")
    def _proxy_is_named_once(self) -> Self:
        if self.proxy_secret_ref is not None and (self.https_proxy or self.http_proxy):
            raise ValueError("must have proxySecretRef, or httpsProxy and httpProxy, not both")
        return self


class JobNetwork(Network):
    """Network settings of a job. Its hub replaces the administrator's `trainer.huggingFaceEndpoint`."""

    hugging_face_endpoint: Annotated[str, Field(min_length=1, max_length=512, pattern=HUB)] | None = None
