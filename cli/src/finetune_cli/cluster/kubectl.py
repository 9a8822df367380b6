"""Requests to a cluster through kubectl, which handles kubeconfig files, contexts and logins of every kind."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from tempfile import TemporaryFile
from typing import IO, Any

REQUEST_SECONDS = 30
_RUN_SECONDS = 2 * REQUEST_SECONDS
"""kubectl makes several requests, for example for the list of resource types."""


class ClusterError(Exception):
    """A request to the cluster failed. The message has kubectl's words and, if there is one, a remedy."""


class ApiUnavailableError(ClusterError):
    """The API server does not respond, or is overloaded. The same request may succeed later."""


class NotFoundError(ClusterError):
    """The object does not exist."""


class ExistsError(ClusterError):
    """An object of this name exists."""


class ForbiddenError(ClusterError):
    """The user has no right to this request, or is not logged in."""


class RejectedError(ClusterError):
    """The API server rejects the object: by its schema, by a rule, or by a policy."""


_NO_CRD = (
    "the cluster must have the FineTuneJob CRD; install the chart, or choose another cluster with --context"
)
_KINDS: tuple[tuple[type[ClusterError], tuple[str, ...], str], ...] = (
    # The order matters: a policy refuses with the word Forbidden, and a webhook quotes other errors.
    (RejectedError, ("ValidatingAdmissionPolicy", "admission webhook", "is invalid", "(Invalid)"), ""),
    (
        RejectedError,
        (
            "(BadRequest)",
            "strict decoding error",
            "field not declared in schema",
            "exceeded quota",
            "does not match the namespace",
        ),
        "",
    ),
    (ClusterError, ("the server doesn't have a resource type", "no matches for kind"), _NO_CRD),
    (ExistsError, ("(AlreadyExists)",), ""),
    (NotFoundError, ("(NotFound)",), ""),
    (ForbiddenError, ("(Forbidden)",), "ask the cluster's administrator for the right"),
    (ForbiddenError, ("You must be logged in", "(Unauthorized)"), "log in to the cluster again"),
    (
        ClusterError,
        (
            "does not exist",
            "context was not found",
            "error loading config file",
            "no such file",
            "invalid configuration",
        ),
        "name a context with --context and a file with --kubeconfig, or set KUBECONFIG",
    ),
)
"""Kinds of errors, by words of kubectl and of the API server, with their remedies."""
_UNAVAILABLE = (
    "Unable to connect to the server",
    "was refused",
    "timeout",
    "timed out",
    "deadline exceeded",
    "EOF",
    "connection re",
    "connection lost",
    "no such host",
    "no route to host",
    "(ServiceUnavailable)",
    "(InternalError)",
    "(TooManyRequests)",
    "(Timeout)",
    "currently unable to handle the request",
)


_ADVICE = "; if you choose to ignore these errors, turn validation off with --validate=false"
"""What kubectl says if it cannot check a manifest. It would lead away from the cause."""


def error_of(message: str) -> ClusterError:
    """Return the error that kubectl's `message` describes."""
    lines = [
        line.strip() for line in message.splitlines() if line.strip() and not line.startswith("Warning:")
    ]
    lines = [line.removesuffix(_ADVICE) for line in lines]
    text = lines[-1].removeprefix("error: ") if lines else "kubectl printed no error"
    for kind, marks, remedy in _KINDS:
        if any(mark in message for mark in marks):
            # A rejected object has one line for each wrong field.
            found = " ".join(lines).removeprefix("error: ") if kind is RejectedError else text
            return kind(f"{found}; {remedy}" if remedy else found)
    if any(mark in message for mark in _UNAVAILABLE):
        return ApiUnavailableError(f"{text}; check the cluster, --context and KUBECONFIG")
    return ClusterError(text)


def _no_kubectl(error: OSError) -> ClusterError:
    return ClusterError(f"kubectl must be on PATH: {error.strerror}; install kubectl")


@dataclass(frozen=True)
class Kubectl:
    """kubectl with a kubeconfig, a context and a namespace; None means kubectl's own default."""

    namespace: str | None = None
    context: str | None = None
    kubeconfig: str | None = None

    def command(self, *arguments: str) -> list[str]:
        """Return the command line for `arguments`."""
        options = {"--kubeconfig": self.kubeconfig, "--context": self.context, "--namespace": self.namespace}
        given = [f"{option}={value}" for option, value in options.items() if value is not None]
        return ["kubectl", *given, *arguments]

    def within(self, namespace: str) -> Kubectl:
        """Return the same kubectl with another namespace."""
        return replace(self, namespace=namespace)

    def run(self, *arguments: str, stdin: str | None = None, seconds: float = _RUN_SECONDS) -> str:
        """Return the text that kubectl prints. Raises ClusterError."""
        return self.output(*arguments, stdin=stdin, seconds=seconds).decode("utf-8", "replace")

    def output(self, *arguments: str, stdin: str | None = None, seconds: float = _RUN_SECONDS) -> bytes:
        """Return the bytes that kubectl prints within `seconds`. Raises ClusterError."""
        command = self.command(*arguments, f"--request-timeout={min(seconds, REQUEST_SECONDS):.0f}s")
        given = None if stdin is None else stdin.encode()
        try:
            done = subprocess.run(command, input=given, capture_output=True, check=False, timeout=seconds)
        except subprocess.TimeoutExpired as error:
            raise ApiUnavailableError(f"kubectl must respond within {seconds:.0f} s, but did not") from error
        except OSError as error:
            raise _no_kubectl(error) from error
        if done.returncode != 0:
            raise error_of(done.stderr.decode("utf-8", "replace"))
        return done.stdout

    @contextmanager
    def stream(self, *arguments: str) -> Iterator[IO[bytes]]:
        """Yield the output of kubectl while it runs, for as long as that takes. Raises ClusterError if kubectl fails."""
        with TemporaryFile() as messages:
            try:
                process = subprocess.Popen(
                    self.command(*arguments), stdout=subprocess.PIPE, stderr=messages, bufsize=1 << 16
                )
            except OSError as error:
                raise _no_kubectl(error) from error
            with process:
                output = process.stdout
                if output is None:
                    raise ClusterError("kubectl must have a pipe for its output, found none")
                try:
                    yield output
                    # What the reader has left, so that kubectl can end.
                    while output.read(1 << 16):
                        pass
                except BaseException:
                    process.terminate()
                    raise
            messages.seek(0)
            if process.returncode != 0:
                raise error_of(messages.read().decode("utf-8", "replace"))

    def json(self, *arguments: str, stdin: str | None = None) -> Any:
        """Return the object that kubectl prints. Raises ClusterError."""
        text = self.run(*arguments, "--output=json", stdin=stdin)
        try:
            return json.loads(text)
        except ValueError as error:
            raise ClusterError(f"kubectl must print JSON, found {text[:80]!r}") from error
