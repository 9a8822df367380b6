"""Carry out a FineTuneJob with processes of this machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune_operator.checks import check
from finetune_operator.model import ClaimPath, DatasetSource, FineTuneJobSpec, spec_hash
from finetune_operator.planning import make_plan
from finetune_operator.runspec import (
    DATASET_URL_VARIABLE,
    MODEL_TOKEN_VARIABLE,
    VALIDATION_URL_VARIABLE,
    JobIdentity,
    Limits,
    Places,
    build_run_spec,
)

from finetune_cli.devices import Device
from finetune_cli.errors import UsageError
from finetune_cli.manifests import Manifests
from finetune_cli.summary import summarise

# One's own machine and network: what the administrator of a cluster bounds is the user's own affair here.
LOCAL_LIMITS = Limits(dataset_bytes=1 << 40, download_seconds=24 * 3600, allow_private_addresses=True)
TELEMETRY_PORT = 9500


@dataclass(frozen=True)
class LocalFolders:
    """Folders that stand for a cluster's volumes: `claims` by name, others below `volumes`; `runs` for workspaces."""

    volumes: Path
    claims: Mapping[str, Path]
    runs: Path

    def claim(self, name: str) -> Path:
        """The folder of a PersistentVolumeClaim; raises UsageError when there is none."""
        folder = self.claims.get(name, self.volumes / name).resolve()
        if not folder.is_dir():
            raise UsageError(
                f"claim {name!r} must be a folder, found none at {folder}; make it or pass --volume {name}=FOLDER"
            )
        return folder


def run_locally(manifests: Manifests, folders: LocalFolders, device: Device) -> int:
    """Run the three stages in one trainer process; return its exit code.

    The workspace is named by the spec's hash, so that the same file goes on where an earlier run stopped. Raises
    UsageError or InvalidSpecError before anything is started.
    """
    spec = FineTuneJobSpec.parse(manifests.spec)
    check(manifests.name, spec)
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
        places=_places(manifests, spec, folders, home),
        device=device,
        limits=LOCAL_LIMITS,
        telemetry_port=TELEMETRY_PORT,
        attempt=0,
    )
    run_spec["telemetry"]["host"] = "127.0.0.1"
    run_file = home / "run.json"
    run_file.write_text(json.dumps(run_spec, indent=2) + "\n", encoding="utf-8")
    print(f"finetune: workspace {workspace}", file=sys.stderr)
    command = [sys.executable, "-m", "finetune_trainer", "run", "--run", str(run_file)]
    environment = {**os.environ, **_secrets(manifests, spec)}
    results: dict[str, dict[str, Any]] = {}
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, text=True, encoding="utf-8"
    ) as process:
        try:
            for line in process.stdout or ():
                result = json.loads(line)
                results[result["stage"]] = result
        except KeyboardInterrupt:
            process.terminate()  # TRAIN saves a checkpoint and the same command goes on from it
            process.wait()
    print(summarise(results), flush=True)
    return process.returncode


def _places(manifests: Manifests, spec: FineTuneJobSpec, folders: LocalFolders, home: Path) -> Places:
    output = spec.output.destination.persistent_volume_claim
    path = manifests.name if output.path is None else output.path
    validation = spec.dataset.validation.source
    template = spec.model.chat_template
    place = None
    if template is not None:
        reference = template.config_map_key_ref
        place = _config_map_file(manifests, reference.name, reference.key, home)
    return Places(
        workspace=str(home / "workspace"),
        output=str(folders.claim(output.claim_name) / path),
        output_uri=(folders.claim(output.claim_name) / path).as_uri(),
        model=_claim_path(spec.model.source.persistent_volume_claim, folders),
        dataset=_dataset(manifests, spec.dataset.source, folders, home),
        validation=None if validation is None else _dataset(manifests, validation, folders, home),
        chat_template=place,
    )


def _claim_path(claim: ClaimPath | None, folders: LocalFolders) -> str | None:
    return None if claim is None else str(folders.claim(claim.claim_name) / claim.path)


def _dataset(manifests: Manifests, source: DatasetSource, folders: LocalFolders, home: Path) -> str | None:
    if source.config_map is not None:
        return _config_map_file(manifests, source.config_map.name, source.config_map.key, home)
    return _claim_path(source.persistent_volume_claim, folders)


def _config_map_file(manifests: Manifests, name: str, key: str, home: Path) -> str:
    """A ConfigMap's key as the file that a pod would see."""
    path = home / "config-maps" / name / key
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(manifests.config_map_value(name, key), encoding="utf-8")
    return str(path)


def _secrets(manifests: Manifests, spec: FineTuneJobSpec) -> dict[str, str]:
    """Environment variables that carry secrets; they go to the trainer's process and to no file."""
    variables: dict[str, str] = {}
    validation = spec.dataset.validation.source
    for source, variable in (
        (spec.dataset.source, DATASET_URL_VARIABLE),
        (validation, VALIDATION_URL_VARIABLE),
    ):
        if source is not None and source.url is not None:
            reference = source.url.secret_key_ref
            variables[variable] = manifests.secret_value(reference.name, reference.key)
    hub = spec.model.source.hugging_face
    if hub is not None and hub.token_secret_ref is not None:
        token = hub.token_secret_ref
        variables[MODEL_TOKEN_VARIABLE] = manifests.secret_value(token.name, token.key)
    return variables
