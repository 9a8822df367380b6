"""The versions at which the operator has listed everything itself, so that a watch need not list it once more."""

from __future__ import annotations


class ListedVersions:
    """The resourceVersion of the last whole list of each path. Each is given away once."""

    def __init__(self) -> None:
        self._versions: dict[str, int] = {}

    def note(self, path: str, version: int) -> None:
        """Everything below `path` is in the store, as of `version`."""
        self._versions[path] = version

    def take(self, path: str) -> int | None:
        """The version from which a watch of `path` may go on; None if it must list first.

        A second watch gets None. The API server may have refused the version as too old.
        """
        return self._versions.pop(path, None)

    def forget(self, path: str) -> None:
        """What was listed is not in the store any more."""
        self._versions.pop(path, None)
