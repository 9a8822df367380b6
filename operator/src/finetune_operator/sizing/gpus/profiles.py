"""GPU profiles: kinds of GPU node that an autoscaler can start, from the chart's `gpuProfiles`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
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
    """GPU profiles that cannot be used. The message names each bad member."""


class _Value(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="forbid", frozen=True)


class ProfileTaint(_Value):
    """A taint of a profile's new nodes, as in core/v1."""

    key: LabelKey
    value: LabelValue = ""
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"]


class GpuProfile(_Value):
    """One kind of node that an autoscaler starts when a pod asks for it.

    `product` is any name that `find_product` knows. For other products, `memory` is the total that nvidia-smi shows. If
    both are set, the smaller size counts. `labels` are those that the autoscaler knows before the node exists; the
    pod's node affinity uses only these. `count` is the number of GPUs of one such node. `startup_taints` are keys of
    taints that go by themselves when a node has started.
    """

    name: Annotated[str, Field(min_length=1, max_length=63)]
    product: Annotated[str, Field(min_length=1, max_length=128)] | None = None
    memory: Quantity | None = None
    count: Annotated[int, Field(ge=1, le=64)] = 1
    labels: Annotated[dict[LabelKey, LabelValue], Field(min_length=1, max_length=32)]
    taints: Annotated[tuple[ProfileTaint, ...], Field(max_length=32)] = ()
    startup_taints: Annotated[tuple[LabelKey, ...], Field(max_length=32)] = ()
    zones: Annotated[tuple[LabelValue, ...], Field(max_length=64)] = ()
    resource_name: Annotated[str, Field(min_length=1, max_length=317)] = "nvidia.com/gpu"
    compute_capability: VersionText | None = None
    driver_cuda: VersionText | None = None

    @model_validator(mode="after")
    def _check_size(self) -> Self:
        if self.product is None and self.memory is None:
            raise ValueError("must have a product or the memory of one GPU, found neither")
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
        """The GPU of this profile's nodes."""
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
        """Yield the offers of a new node: one for each zone, or one without a zone."""
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

    Raises GpuProfileError naming each bad member, or two profiles that labels cannot distinguish.
    """
    try:
        profiles = TypeAdapter(tuple[GpuProfile, ...]).validate_python(document)
    except ValidationError as error:
        details = [
            f"gpuProfiles[{'.'.join(str(step) for step in detail['loc'])}]: {detail['msg']}{_found(detail['input'])}"
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
            raise GpuProfileError(f"gpuProfiles must have different names, found {profile.name} twice")
        names.add(profile.name)
        for other in profiles[:number]:
            same = profile.labels == other.labels and profile.resource_name == other.resource_name
            if same and profile.gpu.usable_bytes != other.gpu.usable_bytes:
                raise GpuProfileError(
                    f"gpuProfiles {other.name} and {profile.name} must differ in a label, because their GPUs differ in size; "
                    "otherwise a pod cannot ask for only one of them"
                )


def vendor_of_resource(resource_name: str) -> Vendor:
    """Return the vendor that an extended resource's domain names."""
    domain = resource_name.partition("/")[0].lower()
    if domain == "nvidia.com" or domain.endswith(".nvidia.com"):
        return "Nvidia"
    return "Amd" if domain == "amd.com" or domain.endswith(".amd.com") else "Unknown"


def _found(value: Any) -> str:
    """Quote a bad value; an object would repeat the whole profile."""
    return "" if isinstance(value, Mapping) else f", found {value!r:.80}"


def _version(text: str | None) -> Version | None:
    if text is None:
        return None
    major, minor = text.split(".")
    return int(major), int(minor)
