"""Rules between fields. Each rule is a small function with the name of its violation.

The CRD's CEL rules are the same as far as CEL can express them. These functions also check objects that an older CRD
accepted and files that the command line reads.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import PurePosixPath

from finetune_operator.api.destinations import NamedDestination
from finetune_operator.api.pods import reserved_keys, why_reserved
from finetune_operator.api.sources import (
    AZURE_URI,
    ENDPOINT,
    GCS_URI,
    S3_URI,
    CloudObject,
    DatasetSource,
    ModelSource,
    S3Object,
)
from finetune_operator.api.spec import FineTuneJobSpec
from finetune_operator.errors import InvalidSpecError

MAXIMUM_NAME_LENGTH = 45
"""The names of child objects add a stage and an attempt, and they can have at most 63 characters."""

Check = Callable[[str, FineTuneJobSpec], str | None]
"""A function of the job's name and spec. It returns what must be and what was found, or None."""


def name_too_long(name: str, _spec: FineTuneJobSpec) -> str | None:
    """The names of child objects contain the job's name."""
    if len(name) > MAXIMUM_NAME_LENGTH:
        return f"metadata.name must be at most {MAXIMUM_NAME_LENGTH} characters, found {len(name)}"
    return None


def model_source_is_not_one(_name: str, spec: FineTuneJobSpec) -> str | None:
    """A union has exactly one member."""
    return _not_one("model.source", spec.model.source)


def dataset_source_is_not_one(_name: str, spec: FineTuneJobSpec) -> str | None:
    """A union has exactly one member."""
    return next(
        (found for field, source in _dataset_sources(spec) if (found := _not_one(field, source))), None
    )


def dataset_path_is_missing(_name: str, spec: FineTuneJobSpec) -> str | None:
    """A dataset is a file, but the claim's root is a folder."""
    for field, source in _dataset_sources(spec):
        claim = source.persistent_volume_claim
        if claim is not None and not claim.path:
            return f"{field}.persistentVolumeClaim.path must name a file inside the claim, found none"
    return None


def validation_is_ambiguous(_name: str, spec: FineTuneJobSpec) -> str | None:
    """Validation rows have one source."""
    validation = spec.dataset.validation
    if validation.fraction is not None and validation.source is not None:
        return "dataset.validation must have at most one of fraction and source, found both"
    return None


def uri_is_malformed(_name: str, spec: FineTuneJobSpec) -> str | None:
    """A URI names a bucket and a key in it, and it contains no secret."""
    for field, store in _object_stores(spec):
        scheme, form, pattern = _URIS[field.rpartition(".")[2]]
        if re.fullmatch(pattern, store.uri) is None:
            return f"{field}.uri must be {form}, found {_without_query(store.uri)!r}; its scheme is {scheme}"
    return None


_URIS = {
    "s3": ("s3", "s3://BUCKET/KEY", S3_URI),
    "gcs": ("gs", "gs://BUCKET/KEY", GCS_URI),
    "azure": ("az", "az://ACCOUNT/CONTAINER/KEY", AZURE_URI),
}


def endpoint_is_not_a_url(_name: str, spec: FineTuneJobSpec) -> str | None:
    """An endpoint is the address of a server, and it contains no secret."""
    for field, store in _object_stores(spec):
        endpoint = store.endpoint if isinstance(store, S3Object) else None
        if endpoint is not None and re.fullmatch(ENDPOINT, endpoint) is None:
            return f"{field}.endpoint must be an http or https URL without user, query and fragment"
    return None


def hub_file_is_ambiguous(_name: str, spec: FineTuneJobSpec) -> str | None:
    """A configuration selects files, but a path names a single file."""
    for field, source in _dataset_sources(spec):
        hub = source.hugging_face
        if hub is not None and hub.path is not None and hub.configuration is not None:
            return f"{field}.huggingFace must have path or configuration, found both"
    return None


def format_is_text(_name: str, spec: FineTuneJobSpec) -> str | None:
    """The API has this format so that the error can explain why it is not supported."""
    if spec.dataset.format == "Text":
        return (
            "dataset.format must not be Text: plain text has no answers to learn; "
            "write each row as messages, or as prompt and completion"
        )
    return None


def training_length_is_ambiguous(_name: str, spec: FineTuneJobSpec) -> str | None:
    """Epochs and steps contradict each other."""
    if spec.training.epochs is not None and spec.training.maximum_steps is not None:
        return "training must have at most one of epochs and maximumSteps, found both"
    return None


def micro_batch_does_not_divide(_name: str, spec: FineTuneJobSpec) -> str | None:
    """Gradient accumulation needs a whole number of micro-batches in an optimizer step."""
    training = spec.training
    if training.micro_batch_size is not None and training.effective_batch_size % training.micro_batch_size:
        return (
            "training.microBatchSize must divide training.effectiveBatchSize, found "
            f"{training.micro_batch_size} and {training.effective_batch_size}"
        )
    return None


def gpus_per_node_does_not_divide(_name: str, spec: FineTuneJobSpec) -> str | None:
    """All pods of TRAIN are alike."""
    gpus, per_node = spec.resources.gpus, spec.resources.gpus_per_node
    if spec.resources.maximum_gpus is None and per_node is not None and gpus % per_node:
        return f"resources.gpusPerNode must divide resources.gpus, found {per_node} and {gpus}"
    return None


def gpus_are_given_and_chosen(_name: str, spec: FineTuneJobSpec) -> str | None:
    """The user gives the number of GPUs, or the largest one. The API server sets `gpus` to 1 if it is absent."""
    resources = spec.resources
    if resources.maximum_gpus is not None and resources.gpus != 1:
        return (
            "resources must have at most one of gpus and maximumGpus, found "
            f"{resources.gpus} and {resources.maximum_gpus}"
        )
    return None


def maximum_is_below_a_pod(_name: str, spec: FineTuneJobSpec) -> str | None:
    """Every pod of TRAIN has all of its GPUs."""
    most, per_node = spec.resources.maximum_gpus, spec.resources.gpus_per_node
    if most is not None and per_node is not None and per_node > most:
        return f"resources.gpusPerNode must be at most resources.maximumGpus, found {per_node} and {most}"
    return None


def gpu_has_no_row(_name: str, spec: FineTuneJobSpec) -> str | None:
    """The GPUs share the rows of a step, so a GPU beyond their number would only wait."""
    resources, rows = spec.resources, spec.training.effective_batch_size
    field, gpus = "gpus", resources.gpus
    if resources.maximum_gpus is not None:
        # The operator chooses no number beyond the rows, unless it must.
        field, gpus = "gpusPerNode", resources.gpus_per_node or 1
    if gpus > rows:
        return (
            f"resources.{field} must be at most training.effectiveBatchSize, because the GPUs share the rows of each step, found "
            f"{gpus} and {rows}"
        )
    return None


def model_is_not_shared_out(_name: str, spec: FineTuneJobSpec) -> str | None:
    """Several GPUs can share the frozen weights. The magnitudes of DoRA need the norms of whole ones."""
    training, resources = spec.training, spec.resources
    if training.parallelism != "FullyShard":
        return None
    most = resources.gpus if resources.maximum_gpus is None else resources.maximum_gpus
    if most == 1:
        field = "gpus" if resources.maximum_gpus is None else "maximumGpus"
        return f"training.parallelism FullyShard needs resources.{field} of at least 2, found 1"
    if training.effective_batch_size == 1:
        return "training.parallelism FullyShard needs training.effectiveBatchSize of at least 2, found 1"
    if training.lora.variant == "DoRA":
        return (
            "training.parallelism FullyShard needs training.lora.variant Standard or RankStabilized, because DoRA needs whole "
            "weights, found DoRA"
        )
    return None


def path_leaves_its_volume(_name: str, spec: FineTuneJobSpec) -> str | None:
    """A path must stay inside its claim."""
    for field, path in _paths(spec):
        parts = PurePosixPath(path).parts
        if ".." in parts or path.startswith("/"):
            return f"{field} must be a relative path without '..', found {path!r}"
    return None


def artifact_is_repeated(_name: str, spec: FineTuneJobSpec) -> str | None:
    """The list is a set."""
    if len(set(spec.output.artifacts)) != len(spec.output.artifacts):
        return f"output.artifacts must not repeat a value, found {', '.join(spec.output.artifacts)}"
    return None


def destination_is_not_one(_name: str, spec: FineTuneJobSpec) -> str | None:
    """Artifacts go to one destination, or to each of a list."""
    output = spec.output
    if (output.destination is None) == (output.destinations is None):
        found = "neither" if output.destination is None else "both"
        return f"output must have exactly one of destination and destinations, found {found}"
    places = {"name", "overwrite"}
    for entry in output.destinations or ():
        members = {
            name: info.alias or name for name, info in type(entry).model_fields.items() if name not in places
        }
        count = sum(getattr(entry, name) is not None for name in members)
        if count != 1:
            return f"output.destinations[{entry.name}] must have exactly one of {', '.join(members.values())}, found {count}"
    return None


def destination_is_repeated(job_name: str, spec: FineTuneJobSpec) -> str | None:
    """The name of a destination identifies it. One place inside another would look like files of a stranger there."""
    entries = spec.output.destinations or ()
    names = [entry.name for entry in entries]
    if len(set(names)) != len(names):
        return f"output.destinations must not repeat a name, found {', '.join(names)}"
    places = [(entry.name, place) for entry in entries for place in _places(job_name, entry)]
    taken = [place for _, place in places]
    for name, place in places:
        if taken.count(place) > 1 or any(place.startswith(f"{other}/") for other in taken):
            return f"output.destinations[{name}] must have a place of its own, found that of another or one inside it"
    return None


def _places(job_name: str, entry: NamedDestination) -> tuple[str, ...]:
    """Texts that are equal for equal places, and begin with that of a place around it and a slash."""
    store, claim = entry.object_store, entry.persistent_volume_claim
    if store is not None:
        endpoint = store.endpoint if isinstance(store, S3Object) else None
        return (f"{endpoint or ''} {store.uri.rstrip('/')}",)
    if claim is not None:
        return (f"{claim.claim_name}/{PurePosixPath(claim.folder(job_name))}",)
    if entry.hugging_face is not None:
        return (f"hf://{entry.hugging_face.repository.lower()}@{entry.hugging_face.branch}",)
    return () if entry.oci is None else entry.oci.references


def nothing_trained_is_published(_name: str, spec: FineTuneJobSpec) -> str | None:
    """The base as trained has nothing of the training, so it is of use only beside an adapter."""
    if set(spec.output.artifacts) == {"BaseAsTrained"}:
        return "output.artifacts must have Adapter or Merged, found only BaseAsTrained"
    return None


def metadata_is_reserved(_name: str, spec: FineTuneJobSpec) -> str | None:
    """The operator finds its pods by these labels, so users must not set them."""
    found = next(reserved_keys(spec.pod_template), None)
    if found is None:
        return None
    field, key = found
    return f"podTemplate.{field} must not use keys {why_reserved(key)}, found {key!r}"


def template_argument_is_not_an_identifier(_name: str, spec: FineTuneJobSpec) -> str | None:
    """Arguments become variables of a Jinja template."""
    for key in spec.model.chat_template_arguments:
        if not key.isidentifier() or len(key) > 64:
            return f"model.chatTemplateArguments must have identifiers of at most 64 characters as keys, found {key!r}"
    return None


CHAIN: tuple[Check, ...] = (
    name_too_long,
    model_source_is_not_one,
    dataset_source_is_not_one,
    dataset_path_is_missing,
    uri_is_malformed,
    endpoint_is_not_a_url,
    hub_file_is_ambiguous,
    format_is_text,
    validation_is_ambiguous,
    training_length_is_ambiguous,
    micro_batch_does_not_divide,
    gpus_per_node_does_not_divide,
    gpus_are_given_and_chosen,
    maximum_is_below_a_pod,
    gpu_has_no_row,
    model_is_not_shared_out,
    path_leaves_its_volume,
    artifact_is_repeated,
    destination_is_not_one,
    destination_is_repeated,
    nothing_trained_is_published,
    template_argument_is_not_an_identifier,
    metadata_is_reserved,
)


def check(name: str, spec: FineTuneJobSpec) -> None:
    """Run every check on the job with this `name`. Raises InvalidSpecError with all violations."""
    found = [message for rule in CHAIN if (message := rule(name, spec)) is not None]
    if found:
        raise InvalidSpecError("; ".join(found))


def _dataset_sources(spec: FineTuneJobSpec) -> Iterable[tuple[str, DatasetSource]]:
    yield "dataset.source", spec.dataset.source
    if spec.dataset.validation.source is not None:
        yield "dataset.validation.source", spec.dataset.validation.source


def _not_one(field: str, source: ModelSource | DatasetSource) -> str | None:
    """Describe the violation unless exactly one member is set."""
    members = [info.alias or name for name, info in type(source).model_fields.items()]
    found = sum(getattr(source, name) is not None for name in type(source).model_fields)
    if found == 1:
        return None
    return f"{field} must have exactly one of {', '.join(members[:-1])} and {members[-1]}, found {found}"


def _object_stores(spec: FineTuneJobSpec) -> Iterable[tuple[str, S3Object | CloudObject]]:
    """Every reference to an object store with its field. The last part of the field is the member's name."""
    named = ((f"output.destinations[{each.name}]", each) for each in spec.output.destinations or ())
    for field, source in (("model.source", spec.model.source), *_dataset_sources(spec), *named):
        for member in ("s3", "gcs", "azure"):
            store: S3Object | CloudObject | None = getattr(source, member)
            if store is not None:
                yield f"{field}.{member}", store


def _without_query(uri: str) -> str:
    """Remove the user and the query of `uri`, which may be secret."""
    return re.split(r"[?#]", uri, maxsplit=1)[0].rpartition("@")[2][:80]


def _paths(spec: FineTuneJobSpec) -> Iterable[tuple[str, str]]:
    if spec.model.source.persistent_volume_claim is not None:
        yield "model.source.persistentVolumeClaim.path", spec.model.source.persistent_volume_claim.path
    for field, source in _dataset_sources(spec):
        if source.persistent_volume_claim is not None:
            yield f"{field}.persistentVolumeClaim.path", source.persistent_volume_claim.path
        if source.hugging_face is not None and source.hugging_face.path is not None:
            yield f"{field}.huggingFace.path", source.hugging_face.path
    for name, claim in spec.output.claims.items():
        if claim.path is not None:
            field = f"destinations[{name}]" if name else "destination"
            yield f"output.{field}.persistentVolumeClaim.path", claim.path
