"""The token of the pod's ServiceAccount, which the kubelet replaces while the operator runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from kubernetes.aio.client import Configuration

READ_SECONDS = 60.0
"""Time after which the file is read again. A token is replaced long before it expires."""
_KEY = "BearerToken"


class ServiceAccountToken:
    """Keeps a configuration's token equal to the one in the file. The library calls it before each request."""

    def __init__(self, path: Path, clock: Callable[[], float]) -> None:
        """`clock` is monotonic, in seconds."""
        self._path = path
        self._clock = clock
        self._due = clock() + READ_SECONDS

    def attach(self, configuration: Configuration) -> None:
        """Let the library use this token."""
        # The library does not say that it is a function.
        configuration.refresh_api_key_hook = self  # type: ignore[assignment]

    def __call__(self, configuration: Configuration) -> None:
        """Read the file again if it is time."""
        if self._clock() >= self._due:
            self.read(configuration)

    def read(self, configuration: Configuration) -> None:
        """Read the file now. While it cannot be read, the token stays."""
        self._due = self._clock() + READ_SECONDS
        try:
            token = self._path.read_text("utf-8").strip()
        except OSError:
            return
        if token:
            configuration.api_key[_KEY] = f"bearer {token}"


def replaced_token(configuration: Configuration, refused: str | None) -> bool:
    """Look for another token than `refused`, the value of an Authorization header that the API server did not accept.

    Returns False if there is none, as for the credentials of a kubeconfig.
    """
    hook: object = configuration.refresh_api_key_hook
    if not isinstance(hook, ServiceAccountToken):
        return False
    hook.read(configuration)
    return bool(configuration.api_key.get(_KEY) != refused)
