"""Import every module of packages once, so that Python writes the bytecode of all that they import.

    python scripts/tools/compile_imports.py [PACKAGE...]

The bytecode is written even if PYTHONDONTWRITEBYTECODE is set, as it is in many container images. Without it, every
process compiles some thousand modules again: half of the CPU time of a stage's start.
"""

from __future__ import annotations

import importlib
import pkgutil
import sys

PACKAGES = ("finetune_operator", "finetune_trainer", "finetune_cli", "finetune_client", "devcluster")


def main(packages: list[str]) -> None:
    """Import the packages with their submodules, except modules that run a program on import."""
    sys.dont_write_bytecode = False
    for package in packages or PACKAGES:
        root = importlib.import_module(package)
        for module in pkgutil.walk_packages(root.__path__, f"{package}."):
            if not module.name.endswith("__main__"):
                importlib.import_module(module.name)


if __name__ == "__main__":
    main(sys.argv[1:])
