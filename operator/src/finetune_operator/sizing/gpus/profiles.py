"""The administrator's catalogue of GPUs that an autoscaler can start: the chart's `gpuProfiles`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator
from pydantic.alias_generators import to_camel

from finetune_operator.api.quantities import MIB, Quantity, parse_bytes
from finetune_operator.sizing.gpus.gpu import Gpu, Offer, Vendor, Version
from finetune_operator.sizing.gpus.nodes import ZONE_KEYS
from finetune_operator.sizing.gpus.products import find_product, usable_of_label

LabelKey = Annotated[str, Field(min_length=1, max_length=317, pattern=r"^[A-Za-z0-9./_-]+$")]
LabelValue = Annotated[str, Field(max_length=63, pattern=r"^([A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?)?$")]
VersionText = Annotated[str, Field(pattern=r"^[0-9]+\.[0-9]+$", max_length=16)]


class GpuProfileError(ValueError):
    """A catalogue cannot be used; the message names each bad member."""


class _Value(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="forbid", frozen=True)


class ProfileTaint(_Value):
    """A taint that new nodes of a profile bear, as in core/v1."""

    key: LabelKey
    value: LabelValue = ""
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"]


class GpuProfile(_Value):
    """One kind of node that does not exist until a pod asks for it.

    `product` is any name that `find_product` knows; `memory` is the total that nvidia-smi shows, for a product that it
    does not. Where both are given the smaller counts. `labels` are those that the autoscaler knows of a node before it
    exists: the pod's node affinity uses these and no others. `count` is the number of GPUs of one such node.
    """

    name: Annotated[str, Field(min_length=1, max_length=63)]
    product: Annotated[str, Field(min_length=1, max_length=128)] | None = None
    memory: Quantity | None = None
    count: Annotated[int, Field(ge=1, le=64)] = 1
    labels: Annotated[dict[LabelKey, LabelValue], Field(min_length=1, max_length=32)]
    taints: Annotated[tuple[ProfileTaint, ...], Field(max_length=32)] = ()
    zones: Annotated[tuple[LabelValue, ...], Field(max_length=64)] = ()
    resource_name: Annotated[str, Field(min_length=1, max_length=317)] = "nvidia.com/gpu"
    compute_capability: VersionText | None = None
    driver_cuda: VersionText | None = None

    @model_validator(mode="after")
    def _check_size(self) -> Self:
        if self.product is None and self.memory is None:
            raise ValueError("must name a product or the memory of one GPU, found neither")
        if self.memory is not None and parse_bytes(self.memory) < MIB:
            raise ValueError(f"memory must be that of one GPU, such as 24Gi, found {self.memory}")
        if self.memory is None and find_product(self.product or "") is None:
            raise ValueError(
                f"product must be a known one unless memory is given, found {self.product!r}; "
                "add memory, the total that nvidia-smi shows, such as 24Gi"
            )
        return self

    @property
    def gpu(self) -> Gpu:
        """The GPU that a node of this profile has."""
        known = find_product(self.product) if self.product is not None else None
        sizes = []
        if known is not None and known.usable_bytes is not None:
            sizes.append(known.usable_bytes)
        if self.memory is not None:
            sizes.append(usable_of_label(parse_bytes(self.memory) // MIB))
        capability = _version(self.compute_capability)
        if capability is None and known is not None:
            capability = known.compute_capability
        return Gpu(
            product=known.product if known is not None else self.product or self.name,
            vendor=known.vendor if known is not None else vendor_of_resource(self.resource_name),
            usable_bytes=min(sizes),
            compute_capability=capability,
            driver_cuda=_version(self.driver_cuda),
            source=f"gpuProfiles {self.name}",
        )

    def offers(self) -> Iterator[Offer]:
        """What a new node would offer: one offer for each zone, or one of no zone."""
        for zone in self.zones or (None,):
            yield Offer(
                gpu=self.gpu,
                resource_name=self.resource_name,
                count=self.count,
                profile=self.name,
                labels=self.labels if zone is None else {**self.labels, ZONE_KEYS[0]: zone},
                taints=tuple(taint.model_dump(exclude_defaults=True) for taint in self.taints),
                zone=zone if zone is not None else self.labels.get(ZONE_KEYS[0]),
                selector_labels=(self.labels,),
            )


def parse_gpu_profiles(document: Any) -> tuple[GpuProfile, ...]:
    """Parse the chart's `gpuProfiles`.

    Raises GpuProfileError naming each bad member, or two profiles that labels cannot tell apart.
    """
    try:
        profiles = TypeAdapter(tuple[GpuProfile, ...]).validate_python(document)
    except ValidationError as error:
        details = [
            f"gpuProfiles[{'.'.join(str(step) for step in detail['loc'])}]: {detail['msg']}"
            for detail in error.errors(include_url=False, include_context=False)
        ]
        raise GpuProfileError("; ".join(details)) from error
    check_distinct(profiles)
    return profiles


def check_distinct(profiles: Sequence[GpuProfile]) -> None:
    """Raise GpuProfileError if two profiles have one name, or the same labels for GPUs of different size."""
    names: set[str] = set()
    for number, profile in enumerate(profiles):
        if profile.name in names:
            raise GpuProfileError(f"gpuProfiles must have names of their own, found {profile.name} twice")
        names.add(profile.name)
        for other in profiles[:number]:
            same = profile.labels == other.labels and profile.resource_name == other.resource_name
            if same and profile.gpu.usable_bytes != other.gpu.usable_bytes:
                raise GpuProfileError(
                    f"gpuProfiles {other.name} and {profile.name} must differ in a label, as their GPUs do in size: "
                    "a pod could not ask for the one and not the other"
                )


def vendor_of_resource(resource_name: str) -> Vendor:
    """The vendor that an extended resource's domain names."""
    domain = resource_name.partition("/")[0].lower()
    if domain == "nvidia.com" or domain.endswith(".nvidia.com"):
        return "Nvidia"
    return "Amd" if domain == "amd.com" or domain.endswith(".amd.com") else "Unknown"


def _version(text: str | None) -> Version | None:
    if text is None:
        return None
    major, minor = text.split(".")
    return int(major), int(minor)
