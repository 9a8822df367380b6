"""The checks of `finetune validate`, each with its result."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

from finetune_operator.api.spec import FineTuneJobSpec
from finetune_operator.api.validation import check
from finetune_operator.errors import InvalidSpecError

from finetune_cli.cluster.client import Client
from finetune_cli.cluster.kubectl import ApiUnavailableError, NotFoundError, RejectedError
from finetune_cli.errors import UsageError
from finetune_cli.manifests import Manifests
from finetune_cli.run.local import LocalFolders
from finetune_cli.trainer import REMEDY, trainer_is_installed
from finetune_cli.validate.rows import prove_rows

Status = Literal["Passed", "Failed", "Skipped"]


@dataclass(frozen=True)
class Check:
    """One check: what was checked, the outcome, and the finding or the remedy."""

    name: Literal["Spec", "Server", "Rows"]
    status: Status
    message: str
    details: Sequence[Any] = field(default=())


def check_spec(manifests: Manifests) -> tuple[Check, FineTuneJobSpec | None]:
    """Check a spec by the operator's own rules."""
    try:
        spec = FineTuneJobSpec.parse(manifests.spec)
        check(manifests.name, spec)
    except InvalidSpecError as error:
        return Check("Spec", "Failed", str(error)), None
    return Check("Spec", "Passed", "the operator accepts the spec"), spec


def check_server(client: Client, document: Any) -> Check:
    """Let the API server check the job: its schema, its rules, and the policies of the cluster. Nothing is stored.

    Raises ClusterError if the API server does not respond, or if it refuses the request itself.
    """
    try:
        client.kubectl.run(
            "apply", "--server-side", "--dry-run=server", "--validate=strict", "--force-conflicts",
            "--field-manager=finetune-validate", "--filename=-", stdin=json.dumps(document),
        )  # fmt: skip
    except (RejectedError, NotFoundError) as error:
        return Check("Server", "Failed", str(error))
    except ApiUnavailableError as error:
        raise ApiUnavailableError(f"{error}; --offline checks without a cluster") from error
    return Check("Server", "Passed", "the API server accepts the job")


def check_rows(
    manifests: Manifests,
    spec: FineTuneJobSpec,
    folders: LocalFolders,
    *,
    data: Path | None,
    tokenizer: Path | None,
    count: int,
    installed: Callable[[], bool] = trainer_is_installed,
) -> Check:
    """Prove the first rows, if the rows, the tokenizer and the trainer are here."""
    folder = tokenizer or _claim_folder(folders, spec.model.source.persistent_volume_claim)
    if folder is None:
        return Check("Rows", "Skipped", "pass --tokenizer FOLDER, a folder with the model's tokenizer")
    if not installed():
        return Check("Rows", "Skipped", REMEDY)
    with TemporaryDirectory() as scratch:
        file = data or _data_file(manifests, spec, folders, Path(scratch))
        if file is None:
            return Check("Rows", "Skipped", "pass --data FILE, a file with rows of the dataset")
        if not file.is_file():
            raise UsageError(f"the dataset must be a file, found none at {file}")
        found = prove_rows(file, folder, spec, count)
    if found.fault is not None:
        return Check("Rows", "Failed", found.fault, found.rejected)
    share = len(found.rejected) / found.rows if found.rows else 0.0
    allowed = spec.dataset.rejected_rows.maximum_fraction
    text = f"{found.rows - len(found.rejected)} of the first {found.rows} rows are accepted"
    text += f", format {found.format}" if found.format else ""
    if share > allowed:
        return Check(
            "Rows", "Failed", f"{text}; at most {allowed:g} of all rows may be rejected", found.rejected
        )
    return Check("Rows", "Passed", text, found.rejected)


def _data_file(
    manifests: Manifests, spec: FineTuneJobSpec, folders: LocalFolders, scratch: Path
) -> Path | None:
    source = spec.dataset.source
    if source.config_map is not None:
        reference = source.config_map
        if reference.name not in manifests.config_maps:
            return None
        file = scratch / Path(reference.key).name
        file.write_bytes(manifests.config_map_value(reference.name, reference.key))
        return file
    claim = source.persistent_volume_claim
    return _claim_folder(folders, claim)


def _claim_folder(folders: LocalFolders, claim: Any) -> Path | None:
    """Return the path in a claim that is a folder of this machine; None if it is none."""
    if claim is None:
        return None
    try:
        return folders.claim(claim.claim_name) / (claim.path or "")
    except UsageError:
        return None
