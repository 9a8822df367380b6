"""Run a FineTuneJob on this machine, in a local process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from finetune_operator.api.network import Network
from finetune_operator.api.plan import Device, LearningRate, Plan
from finetune_operator.api.sources import ClaimPath, DatasetSource, KeyRef
from finetune_operator.api.spec import FineTuneJobSpec, spec_hash
from finetune_operator.api.stages import STEP_VARIABLE
from finetune_operator.api.tracking import Tracking
from finetune_operator.api.validation import check
from finetune_operator.contract.credentials import (
    destination_secret_prefixes,
    destination_secret_variables,
    secret_prefixes,
    secret_variables,
)
from finetune_operator.contract.identity import JobIdentity
from finetune_operator.contract.mounts import ARTIFACTS_FOLDER, MountPaths, first_destination
from finetune_operator.contract.network import retry_seconds
from finetune_operator.contract.run_spec import Limits, build_run_spec
from finetune_operator.contract.tracking import choose_trackers, tracking_secret_prefixes
from finetune_operator.sizing.learning_rate import choose_learning_rate
from finetune_operator.sizing.memory.shape import ShapeUnknownError, model_shape
from finetune_operator.sizing.planning import make_plan, rate_text

from finetune_cli.errors import UsageError
from finetune_cli.manifests import Manifests
from finetune_cli.run.network import network_environment
from finetune_cli.run.summary import summarize

# On the user's own machine and network, there is no administrator who limits downloads.
LOCAL_LIMITS = Limits(dataset_bytes=1 << 40, download_seconds=24 * 3600, allow_private_addresses=True)
TELEMETRY_PORT = 9500
SIGNING_KEY_VARIABLE = "FINETUNE_SIGNING_KEY_FILE"


Parallelism = Literal["DataParallel", "FullyShard"]
"""Each process has a replica of the model, or a part of its frozen weights."""


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


def run_locally(
    manifests: Manifests,
    folders: LocalFolders,
    device: Device,
    processes: int | None = None,
    parallelism: Parallelism | None = None,
) -> int:
    """Run the three stages in one trainer process, which starts others for TRAIN; return its exit code.

    `processes` share the rows of each training step, and with `FullyShard` also the frozen weights. None takes those of the
    spec. If the spec gives no learning rate, PREPARE runs in a process of its own before. The spec's hash names the workspace,
    so the same file resumes where an earlier run stopped.

    Raises UsageError or InvalidSpecError before any process starts.
    """
    spec = FineTuneJobSpec.parse(manifests.spec)
    check(manifests.name, spec)
    processes, parallelism = choose_ranks(spec, device, processes, parallelism)
    if processes > spec.training.effective_batch_size:
        raise UsageError(
            f"--processes must be at most training.effectiveBatchSize ({spec.training.effective_batch_size}), because they "
            f"share the rows of a step, found {processes}"
        )
    if parallelism == "FullyShard" and processes == 1:
        raise UsageError("--parallelism FullyShard needs --processes of at least 2, found 1")
    secrets = secret_environment(manifests, spec, os.environ)
    digest = spec_hash(spec)
    job = JobIdentity(manifests.namespace, manifests.name, f"local-{digest.removeprefix('sha256:')[:16]}")
    home = folders.runs / f"{manifests.name}-{digest.removeprefix('sha256:')[:12]}"
    workspace = home / "workspace"
    workspace.mkdir(parents=True, exist_ok=True)
    run_file = home / "run.json"
    paths = local_paths(manifests, spec, folders, home)
    limits = replace(LOCAL_LIMITS, retry_seconds=retry_seconds(spec.network, Network()))

    def write_run_spec(plan: Plan) -> None:
        run_spec = build_run_spec(
            job=job,
            spec=spec,
            spec_hash=digest,
            plan=plan,
            paths=paths,
            device=device,
            limits=limits,
            telemetry_port=TELEMETRY_PORT,
            attempt=0,
            explains_rate=True,
            trackers=choose_trackers(spec.tracking, Tracking()),
        )
        run_spec["telemetry"]["host"] = "127.0.0.1"
        if parallelism != "DataParallel":
            run_spec["training"]["parallelism"] = parallelism
        run_file.write_text(json.dumps(run_spec, indent=2) + "\n", encoding="utf-8")

    plan = make_plan(spec, device)
    write_run_spec(plan)
    print(f"finetune: workspace {workspace}", file=sys.stderr)
    for warning in plan.warnings:
        print(f"finetune: warning: {warning}", file=sys.stderr)
    network = network_environment(manifests, spec.network, home / "ca-bundles")
    environment = {**os.environ, **secrets, **network}
    if spec.training.learning_rate is None:
        # The rate follows from the model and the number of rows, which PREPARE finds out.
        code, result = _prepare(run_file, home / "prepare.json", environment, spec)
        if code != 0:
            print(summarize({"Prepare": result} if result else {}), flush=True)
            return code
        rate = rate_of(spec, result["prepare"])
        write_run_spec(make_plan(spec, device, learning_rate=rate))
        print(f"finetune: learning rate {rate_text(rate.value)}: {rate.reason}", file=sys.stderr)
    return _run_stages(run_file, environment, processes)


def choose_ranks(
    spec: FineTuneJobSpec, device: Device, processes: int | None, parallelism: Parallelism | None
) -> tuple[int, Parallelism]:
    """Return the processes and how they share the model, as they are given or else as the spec asks for.

    One process of a CPU has all of its cores already, so `resources.gpus` counts only with GPUs.
    """
    gpus = spec.resources.gpus
    if processes is None:
        processes = gpus if device == "cuda" else 1
        if processes < gpus:
            print(
                f"finetune: one process for resources.gpus {gpus}, because a CPU has no GPUs to share; --processes {gpus} "
                "tries as many",
                file=sys.stderr,
            )
    if parallelism is None:
        asked = spec.training.parallelism
        parallelism = "FullyShard" if asked == "FullyShard" and processes > 1 else "DataParallel"
    return processes, parallelism


def rate_of(spec: FineTuneJobSpec, prepared: Mapping[str, Any]) -> LearningRate:
    """Choose the learning rate from the result of PREPARE. A model of unknown shape gets the provisional rate."""
    try:
        shape = model_shape(prepared["model"].get("config") or {})
    except ShapeUnknownError:
        shape = None
    return choose_learning_rate(spec.training, shape, prepared["dataset"]["trainingExamples"])


def _prepare(
    run_file: Path, result_file: Path, environment: dict[str, str], spec: FineTuneJobSpec
) -> tuple[int, dict[str, Any]]:
    """Run PREPARE alone, after a try of the destinations; return its exit code and its result, empty if it wrote none."""
    if spec.output.destinations is not None:
        code, result = _run_prepare(run_file, result_file, {**environment, STEP_VARIABLE: "Probe"})
        if code != 0:
            return code, result
    return _run_prepare(run_file, result_file, environment)


def _run_prepare(
    run_file: Path, result_file: Path, environment: dict[str, str]
) -> tuple[int, dict[str, Any]]:
    result_file.unlink(missing_ok=True)
    command = [sys.executable, "-m", "finetune_trainer", "prepare", "--run", str(run_file)]
    command += ["--termination-message", str(result_file)]
    with subprocess.Popen(command, env=environment) as process:
        try:
            process.wait()
        except KeyboardInterrupt:
            process.terminate()
            process.wait()
    result = json.loads(result_file.read_text("utf-8")) if result_file.exists() else {}
    return process.returncode, result


def _run_stages(run_file: Path, environment: dict[str, str], processes: int) -> int:
    """Run all stages that are not finished, print the summary and return the exit code."""
    command = [sys.executable, "-m", "finetune_trainer", "run", "--run", str(run_file)]
    command += ["--processes", str(processes)]
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
    outputs = {
        name: folders.claim(claim.claim_name) / claim.folder(manifests.name)
        for name, claim in spec.output.claims.items()
    }
    only = outputs.pop("", None)
    named = {name: (str(folder), folder.as_uri()) for name, folder in outputs.items()}
    validation = spec.dataset.validation.source
    template, prompts = spec.model.chat_template, spec.dataset.target_prompts
    signing = spec.output.signing
    return MountPaths(
        workspace=str(home / "workspace"),
        output=str(home / "workspace" / ARTIFACTS_FOLDER if only is None else only),
        output_uri=first_destination(spec, named) if only is None else only.as_uri(),
        destinations=named,
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
        signing_key=None if signing is None else _signing_key_file(manifests, signing.key_secret_ref, home),
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


def _signing_key_file(manifests: Manifests, reference: KeyRef, home: Path) -> str:
    """Write the signing key to a file that only this user can read, or take the file that a variable names.

    Raises UsageError if the key is in neither.
    """
    given = os.environ.get(SIGNING_KEY_VARIABLE)
    if reference.name not in manifests.secrets and given:
        return str(Path(given).resolve())
    try:
        value = manifests.secret_value(reference.name, reference.key)
    except UsageError as error:
        raise UsageError(
            f"{error}; or name its file in the environment variable {SIGNING_KEY_VARIABLE}"
        ) from error
    path = home / "signing" / reference.key
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        file.write(value)
    return str(path)


def secret_environment(
    manifests: Manifests, spec: FineTuneJobSpec, environment: Mapping[str, str]
) -> dict[str, str]:
    """Environment variables with secrets. They are passed to the trainer's process and written to no file.

    A Secret comes from the same file, or from variables in `environment` with the same names as in a pod. So no file needs
    to contain it. Raises UsageError if a Secret is in neither.
    """
    variables: dict[str, str] = {}
    for item in [*secret_variables(spec), *destination_secret_variables(spec)]:
        if item.reference.name in manifests.secrets or item.variable not in environment:
            variables[item.variable] = _secret_value(manifests, item.reference, item.variable)
    trackers = tracking_secret_prefixes(choose_trackers(spec.tracking, Tracking()))
    for whole in [*secret_prefixes(spec), *destination_secret_prefixes(spec), *trackers]:
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
