"""The environment variables and files of a job's network settings, for a run on this machine."""

from __future__ import annotations

from pathlib import Path

from finetune_operator.api.network import JobNetwork, Network
from finetune_operator.api.sources import KeyRef
from finetune_operator.contract.network import (
    CA_BUNDLE_VARIABLE,
    MountedBundle,
    hub_variables,
    mounted_bundles,
    network_variables,
)

from finetune_cli.manifests import Manifests


def network_environment(manifests: Manifests, network: JobNetwork, folder: Path) -> dict[str, str]:
    """Return the trainer's variables for `network`, and write its CA bundle below `folder`.

    A setting of the job replaces the variable of this machine; an empty setting removes it. Secrets and ConfigMaps come
    from the job's file. Raises UsageError if one is missing there.
    """
    variables: dict[str, str] = {}
    replaced = {
        "HTTPS_PROXY": network.https_proxy is not None,
        "HTTP_PROXY": network.http_proxy is not None,
        "NO_PROXY": network.no_proxy is not None,
    }
    variables |= {name: "" for name, given in replaced.items() if given}
    for item in [*network_variables(network, Network()), *hub_variables(network, "")]:
        variables[item.name] = item.value if isinstance(item.value, str) else _secret(manifests, item.value)
    # A name in lower case takes precedence, and this machine may have one.
    proxies = {name.lower(): value for name, value in variables.items() if name.endswith("_PROXY")}
    bundles = [_write(manifests, bundle, folder) for bundle in mounted_bundles(network, Network())]
    files = {CA_BUNDLE_VARIABLE: ":".join(map(str, bundles))} if bundles else {}
    return {**variables, **proxies, **files}


def _secret(manifests: Manifests, reference: KeyRef) -> str:
    return manifests.secret_value(reference.name, reference.key)


def _write(manifests: Manifests, mounted: MountedBundle, folder: Path) -> Path:
    reference = mounted.reference
    if mounted.bundle.config_map_key_ref is not None:
        content = manifests.config_map_value(reference.name, reference.key)
    else:
        content = _secret(manifests, reference).encode()
    path = folder / mounted.name / reference.key
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path
