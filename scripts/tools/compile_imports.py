"""Import every module of the project once, so that Python writes the bytecode of all imported modules."""

from __future__ import annotations

import importlib
import pkgutil

PACKAGES = ("finetune_operator", "finetune_trainer", "finetune_cli", "devcluster")


def main() -> None:
    """Import the packages with their submodules, except modules that run a program on import."""
    for package in PACKAGES:
        root = importlib.import_module(package)
        for module in pkgutil.walk_packages(root.__path__, f"{package}."):
            if not module.name.endswith("__main__"):
                importlib.import_module(module.name)


if __name__ == "__main__":
    main()
