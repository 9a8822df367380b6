"""Whether the trainer is installed beside the command line, which starts it as a process."""

from __future__ import annotations

from importlib.util import find_spec

REMEDY = "the trainer must be installed beside the command line; run pipx install '.[cli,trainer]' in the repository"


def trainer_is_installed() -> bool:
    """Return True if this Python has the trainer with its libraries."""
    return all(find_spec(name) is not None for name in ("finetune_trainer", "torch", "transformers"))
