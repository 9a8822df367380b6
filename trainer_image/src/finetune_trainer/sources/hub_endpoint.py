"""The Hugging Face hub of a run: the job's, the administrator's, or the public one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from finetune_trainer.contract.network import HUB, JOB_HUB

PUBLIC_HUB = "https://huggingface.co"


@dataclass(frozen=True)
class HubEndpoint:
    """Base URL of a hub, without a slash at its end. A hub `of_job` must have an allowed address."""

    url: str
    of_job: bool = False

    @property
    def remedy(self) -> str:
        """The setting to correct if the URL cannot be used."""
        setting = "network.huggingFaceEndpoint" if self.of_job else "trainer.huggingFaceEndpoint in the chart"
        return f"the hub's endpoint must be an http or https URL, found another value; correct {setting}"


def hub_endpoint(environment: Mapping[str, str]) -> HubEndpoint:
    """Return the hub that the environment names."""
    if own := environment.get(JOB_HUB):
        return HubEndpoint(own.rstrip("/"), of_job=True)
    return HubEndpoint((environment.get(HUB) or PUBLIC_HUB).rstrip("/"))
