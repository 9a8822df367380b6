"""The network settings of a run, joined from job and administrator, as environment variables and files of the trainer.

Proxies: each member that the job sets replaces the administrator's. CA bundles add up. The trainer must know which
proxies come from the job, because a job may not reach private addresses with one.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePosixPath

from finetune_operator.api.network import DEFAULT_RETRY_SECONDS, CaBundle, JobNetwork, Network
from finetune_operator.api.sources import KeyRef

CA_MOUNT = "/etc/finetune-ca"
CA_BUNDLE_VARIABLE = "FINETUNE_CA_BUNDLE"
"""Paths of the bundles, separated by colons."""
JOB_PROXIES_VARIABLE = "FINETUNE_JOB_PROXIES"
"""Names of the proxy variables that come from the job, separated by spaces."""
HUB_VARIABLE = "HF_ENDPOINT"
JOB_HUB_VARIABLE = "FINETUNE_JOB_HUB"
"""An earlier trainer does not know it, and so reaches no address of a job without checking it."""
_PROXIES = (("HTTPS_PROXY", "https_proxy"), ("HTTP_PROXY", "http_proxy"))


@dataclass(frozen=True)
class NetworkVariable:
    """An environment variable: a plain value, or a key of a Secret."""

    name: str
    value: str | KeyRef


@dataclass(frozen=True)
class MountedBundle:
    """A CA bundle. `name` is that of its volume, and its file is in the folder `mount`."""

    name: str
    mount: str
    bundle: CaBundle

    @property
    def reference(self) -> KeyRef:
        """The key that holds the bundle."""
        reference = self.bundle.config_map_key_ref or self.bundle.secret_key_ref
        assert reference is not None  # noqa: S101 -- for the type checker: CaBundle has one of them
        return reference

    @property
    def path(self) -> str:
        """Path of the file."""
        return str(PurePosixPath(self.mount) / self.reference.key)


def network_variables(job: Network, administrator: Network) -> list[NetworkVariable]:
    """The proxy variables of a run. An empty setting gives no variable."""
    found, from_job = [], []
    for name, member in _PROXIES:
        value, is_job = _proxy(job, administrator, member)
        if value:
            found.append(NetworkVariable(name, value))
            from_job += [name] if is_job else []
    exceptions = administrator.no_proxy if job.no_proxy is None else job.no_proxy
    if found and exceptions:
        found.append(NetworkVariable("NO_PROXY", exceptions))
    if from_job:
        found.append(NetworkVariable(JOB_PROXIES_VARIABLE, " ".join(from_job)))
    return found


def hub_variables(job: JobNetwork, administrators: str) -> list[NetworkVariable]:
    """The hubs of a run: the administrator's, empty for the public one, and the job's, which replaces it."""
    named = ((HUB_VARIABLE, administrators), (JOB_HUB_VARIABLE, job.hugging_face_endpoint))
    return [NetworkVariable(name, value) for name, value in named if value]


def mounted_bundles(job: Network, administrator: Network) -> list[MountedBundle]:
    """The CA bundles of a run, each in its own folder."""
    named = (("ca-bundle", administrator.ca_bundle), ("job-ca-bundle", job.ca_bundle))
    return [MountedBundle(name, f"{CA_MOUNT}/{name}", bundle) for name, bundle in named if bundle is not None]


def retry_seconds(job: Network, administrator: Network) -> int:
    """The seconds for which a run waits for a server in an outage."""
    given = (job.retry_seconds, administrator.retry_seconds)
    return next((seconds for seconds in given if seconds is not None), DEFAULT_RETRY_SECONDS)


def _proxy(job: Network, administrator: Network, member: str) -> tuple[str | KeyRef | None, bool]:
    """The setting for one scheme, and whether it comes from the job."""
    own: str | None = getattr(job, member)
    if own is not None:
        return own, True
    if job.proxy_secret_ref is not None:
        return job.proxy_secret_ref, True
    shared: str | None = getattr(administrator, member)
    return shared or administrator.proxy_secret_ref, False
