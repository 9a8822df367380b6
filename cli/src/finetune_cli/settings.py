"""Settings of the form PATH=VALUE, applied to a spec."""

from __future__ import annotations

from typing import Any

from finetune_cli.errors import UsageError
from finetune_cli.manifests import read_scalar


def apply_setting(spec: dict[str, Any], setting: str) -> None:
    """Set one field. The parser of the spec rejects unknown fields later. Raises UsageError."""
    path, separator, text = setting.partition("=")
    steps = path.removeprefix("spec.").split(".")
    if not separator or not all(steps):
        raise UsageError(f"--set must be PATH=VALUE, such as training.microBatchSize=2, found {setting!r}")
    target = spec
    for step in steps[:-1]:
        inner = target.get(step)
        if inner is None:
            inner = target[step] = {}
        if not isinstance(inner, dict):
            raise UsageError(
                f"--set {path} must name a field of the spec; {step} has the value {inner!r} and no fields"
            )
        target = inner
    value = read_scalar(text)
    if value is None:
        target.pop(steps[-1], None)
    else:
        target[steps[-1]] = value
