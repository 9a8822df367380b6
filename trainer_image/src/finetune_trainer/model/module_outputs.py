"""Watches the modules of a model while it runs: the output of each, and the one in which an error came up."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator


class ModuleOutputs:
    """The first output of each module by name, in the order in which modules end, and the modules that have not ended."""

    def __init__(self) -> None:
        self.found: dict[str, torch.Tensor] = {}
        self._entered: list[str] = []

    @property
    def innermost(self) -> str | None:
        """The innermost module that was entered and has not ended; None if all have."""
        return self._entered[-1] if self._entered else None

    @contextmanager
    def watching(self, model: Any) -> Iterator[None]:
        """Watch the modules of `model` inside of the `with` statement, without those of an adapter."""
        hooks: list[Any] = []
        for name, module in model.named_modules():
            if name and "lora_" not in name and not name.endswith("base_layer"):
                hooks.append(
                    module.register_forward_pre_hook(lambda *_, name=name: self._entered.append(name))
                )
                hooks.append(
                    module.register_forward_hook(
                        lambda _module, _inputs, output, name=name: self._end(name, output)
                    )
                )
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _end(self, name: str, output: Any) -> None:
        if self._entered and self._entered[-1] == name:
            self._entered.pop()
        value = output[0] if isinstance(output, tuple) and output else output
        if isinstance(value, torch.Tensor) and value.is_floating_point():
            self.found.setdefault(name, value.detach())
