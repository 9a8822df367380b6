"""Run a FineTuneJob on this machine, in a local process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from finetune_operator.api.network import Network
from finetune_operator.api.plan import Device
from finetune_operator.api.sources import ClaimPath, DatasetSource, KeyRef
from finetune_operator.api.spec import FineTuneJobSpec, spec_hash
from finetune_operator.api.validation import check
from finetune_operator.contract.credentials import secret_prefixes, secret_variables
from finetune_operator.contract.network import retry_seconds
from finetune_operator.contract.run_spec import JobIdentity, Limits, MountPaths, build_run_spec
from finetune_operator.sizing.planning import make_plan

from finetune_cli.errors import UsageError
from finetune_cli.manifests import Manifests
from finetune_cli.run.network import network_environment
from finetune_cli.run.summary import summarize

# On the user's own machine and network, there is no administrator who limits downloads.
LOCAL_LIMITS = Limits(dataset_bytes=1 << 40, download_seconds=24 * 3600, allow_private_addresses=True)
TELEMETRY_PORT = 9500


@dataclass(frozen=True)
class LocalFolders:
    """The folders of claims: by name in `claims`, others below `volumes`. Workspaces are below `runs`."""

    volumes: Path
    claims: Mapping[str, Path]
    runs: Path

    def claim(self, name: str) -> Path:
        """The folder of a PersistentVolumeClaim; raises UsageError if there is none."""
        folder = self.claims.get(name, self.volumes / name).resolve()
        if not folder.is_dir():
            raise UsageError(
                f"claim {name!r} must be a folder, found none at {folder}; create it or pass --volume {name}=FOLDER"
            )
        return folder


def run_locally(manifests: Manifests, folders: LocalFolders, device: Device) -> int:
    """Run the three stages in one trainer process; return its exit code.

    The spec's hash names the workspace, so the same file resumes where an earlier run stopped. Raises UsageError or
    InvalidSpecError before any process starts.
    """
    spec = FineTuneJobSpec.parse(manifests.spec)
    check(manifests.name, spec)
    secrets = secret_environment(manifests, spec, os.environ)
    digest = spec_hash(spec)
    job = JobIdentity(manifests.namespace, manifests.name, f"local-{digest.removeprefix('sha256:')[:16]}")
    home = folders.runs / f"{manifests.name}-{digest.removeprefix('sha256:')[:12]}"
    workspace = home / "workspace"
    workspace.mkdir(parents=True, exist_ok=True)
    run_spec = build_run_spec(
        job=job,
        spec=spec,
        spec_hash=digest,
        plan=make_plan(spec, device),
        paths=local_paths(manifests, spec, folders, home),
        device=device,
        limits=replace(LOCAL_LIMITS, retry_seconds=retry_seconds(spec.network, Network())),
        telemetry_port=TELEMETRY_PORT,
        attempt=0,
    )
    run_spec["telemetry"]["host"] = "127.0.0.1"
    run_file = home / "run.json"
    run_file.write_text(json.dumps(run_spec, indent=2) + "\n", encoding="utf-8")
    print(f"finetune: workspace {workspace}", file=sys.stderr)
    command = [sys.executable, "-m", "finetune_trainer", "run", "--run", str(run_file)]
    network = network_environment(manifests, spec.network, home / "ca-bundles")
    environment = {**os.environ, **secrets, **network}
    results: dict[str, dict[str, Any]] = {}
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, text=True, encoding="utf-8"
    ) as process:
        try:
            for line in process.stdout or ():
                result = json.loads(line)
                results[result["stage"]] = result
        except KeyboardInterrupt:
            process.terminate()  # TRAIN saves a checkpoint, and the same command resumes from it
            process.wait()
    print(summarize(results), flush=True)
    return process.returncode


def local_paths(manifests: Manifests, spec: FineTuneJobSpec, folders: LocalFolders, home: Path) -> MountPaths:
    """The paths on this machine. ConfigMaps become files below `home`. Raises UsageError."""
    output = spec.output.destination.persistent_volume_claim
    path = manifests.name if output.path is None else output.path
    validation = spec.dataset.validation.source
    template, prompts = spec.model.chat_template, spec.dataset.target_prompts
    return MountPaths(
        workspace=str(home / "workspace"),
        output=str(folders.claim(output.claim_name) / path),
        output_uri=(folders.claim(output.claim_name) / path).as_uri(),
        model=_claim_path(spec.model.source.persistent_volume_claim, folders),
        dataset=_dataset(manifests, spec.dataset.source, folders, home),
        validation=None if validation is None else _dataset(manifests, validation, folders, home),
        chat_template=None
        if template is None
        else _config_map_file(manifests, template.config_map_key_ref, home),
        target_prompts=None
        if prompts is None
        else _config_map_file(manifests, prompts.config_map_key_ref, home),
        model_cache=None if spec.model_cache is None else str(folders.claim(spec.model_cache.claim_name)),
    )


def _claim_path(claim: ClaimPath | None, folders: LocalFolders) -> str | None:
    return None if claim is None else str(folders.claim(claim.claim_name) / claim.path)


def _dataset(manifests: Manifests, source: DatasetSource, folders: LocalFolders, home: Path) -> str | None:
    if source.config_map is not None:
        return _config_map_file(manifests, source.config_map, home)
    return _claim_path(source.persistent_volume_claim, folders)


def _config_map_file(manifests: Manifests, reference: KeyRef, home: Path) -> str:
    """Write a ConfigMap's key to a file, like the one in a pod."""
    path = home / "config-maps" / reference.name / reference.key
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(manifests.config_map_value(reference.name, reference.key))
    return str(path)


def secret_environment(
    manifests: Manifests, spec: FineTuneJobSpec, environment: Mapping[str, str]
) -> dict[str, str]:
    """Environment variables with secrets. They are passed to the trainer's process and written to no file.

    A Secret comes from the same file, or from variables in `environment` with the same names as in a pod. So no file needs
    to contain it. Raises UsageError if a Secret is in neither.
    """
    variables: dict[str, str] = {}
    for item in secret_variables(spec):
        if item.reference.name in manifests.secrets or item.variable not in environment:
            variables[item.variable] = _secret_value(manifests, item.reference, item.variable)
    for whole in secret_prefixes(spec):
        if whole.secret in manifests.secrets:
            values = manifests.secrets[whole.secret]
            variables |= {whole.prefix + key: value for key, value in values.items()}
        elif not any(name.startswith(whole.prefix) for name in environment):
            raise UsageError(
                f"Secret {whole.secret!r} must be in the same file, or its keys in environment variables that begin with "
                f"{whole.prefix}; found neither"
            )
    return variables


def _secret_value(manifests: Manifests, reference: KeyRef, variable: str) -> str:
    try:
        return manifests.secret_value(reference.name, reference.key)
    except UsageError as error:
        raise UsageError(f"{error}; or set the environment variable {variable}") from error
