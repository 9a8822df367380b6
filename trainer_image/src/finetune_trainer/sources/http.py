"""Fetch a file from a secret URL: streamed, resumed, bounded, and only from allowed addresses.

The table in `responses` says what each response means. Requests carry no cookie and no referrer. They carry no
credentials but those in the URL itself, and send these to the URL's own origin only. No message of this module holds
any part of the URL.
"""

from __future__ import annotations

import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from finetune_trainer.errors import Reason, StageError
from finetune_trainer.sources.connections import Connections
from finetune_trainer.sources.fetch_target import DATASET
from finetune_trainer.sources.network import Network
from finetune_trainer.sources.partial_download import PartialFile
from finetune_trainer.sources.responses import Action, Verdict, interpret
from finetune_trainer.sources.retry import DEFAULT_RETRY_SECONDS, Outage, retry
from finetune_trainer.sources.transfer import OnBytes, Rules, Transfer
from finetune_trainer.sources.url import InvalidLocationError, Location


@dataclass(frozen=True)
class Limits:
    """Bounds of one download: bytes in all, seconds in all, whether private addresses may be used.

    `retry_seconds` is the time to wait for a server in an outage.
    """

    bytes: int
    seconds: float
    allow_private_addresses: bool
    retry_seconds: float = DEFAULT_RETRY_SECONDS


def download(
    url: str,
    destination: Path,
    limits: Limits,
    on_bytes: OnBytes,
    *,
    reuse: bool = False,
    ssl_context: ssl.SSLContext | None = None,
    sleep: Callable[[float], None] = time.sleep,
    network: Network | None = None,
) -> dict[str, Any]:
    """Fetch `url` into the file `destination` and return the file's identity: kind, ETag and size in bytes.

    An outage is waited for; new bytes start the wait again. If the server sends a strong ETag, the rest is requested
    with Range and If-Range. The bytes that a killed process left are resumed in the same way, also under a newly
    signed URL. `on_bytes` receives the bytes done and the total. With `reuse`, a file that an earlier process finished
    from the same URL path is returned without a request. A body in gzip content coding is decoded. `network` is by
    default that of the process's environment. Raises StageError with a reason that starts with `Dataset`,
    MalformedDataset if the coding is broken, or InvalidNetworkSettings.
    """
    location = _checked(url, limits)
    path = location.target.partition(b"?")[0].decode("ascii")
    partial = PartialFile(destination, f"{location.scheme}://{location.host}:{location.port}{path}")
    if reuse and (identity := partial.finished()) is not None:
        return identity
    network = Network.from_environment() if network is None else network
    network = replace(network, allow_private=limits.allow_private_addresses)
    policy = replace(network.retry, seconds=limits.retry_seconds, sleep=sleep)
    deadline = time.monotonic() + limits.seconds
    transfer = Transfer(partial, _rules(limits), deadline, on_bytes)
    with Connections(
        network,
        DATASET,
        allow_private=limits.allow_private_addresses,
        deadline=deadline,
        forbidden=_forbidden,
        late=transfer.late,
        ssl_context=ssl_context,
    ) as connections:
        retry(
            lambda: transfer.attempt(connections, location),
            _unavailable,
            name="dataset",
            policy=policy,
            progress=lambda: transfer.done,
            waiting=transfer.waiting,
            deadline=deadline,
        )
    etag = transfer.finish()
    identity = {
        "kind": "Url",
        "etag": None if etag is None else etag[:200].encode("ascii", "backslashreplace").decode(),
        "bytes": partial.path.stat().st_size,
    }
    partial.finish(identity)
    return identity


def _rules(limits: Limits) -> Rules:
    def require_size(size: int) -> None:
        if size > limits.bytes:
            raise StageError(
                Reason.DATASET_TOO_LARGE,
                f"the dataset must have at most {limits.bytes} bytes, found more; "
                "use a smaller one or raise trainer.limits.datasetBytes in the chart",
            )

    def late(done: int) -> StageError:
        return StageError(
            Reason.DATASET_UNAVAILABLE,
            f"the download must end within {limits.seconds:.0f} seconds, found it still running after "
            f"{done} bytes; use a nearer server or raise trainer.limits.downloadSeconds",
        )

    return Rules(
        target=DATASET,
        judge=interpret,
        error=_error,
        require_size=require_size,
        late=late,
        redirects=_too_many_redirects,
        invalid=_invalid_url,
        keep_https=_redirect_to_http,
    )


def _checked(url: str, limits: Limits) -> Location:
    try:
        location = Location.parse(url)
    except InvalidLocationError:
        raise _invalid_url() from None
    if location.scheme != "https" and not limits.allow_private_addresses:
        raise _invalid_url()
    return location


def _invalid_url() -> StageError:
    return StageError(
        Reason.DATASET_ADDRESS_FORBIDDEN,
        "the dataset's URL and every redirect must be a valid https URL, found one that is not; "
        "check the value in the Secret",
    )


def _redirect_to_http() -> StageError:
    return StageError(
        Reason.DATASET_ADDRESS_FORBIDDEN,
        "the dataset's https URL must redirect to https only, found a redirect to http; "
        "use the file's own https URL",
    )


def _too_many_redirects() -> StageError:
    return StageError(
        Reason.DATASET_UNAVAILABLE,
        "the dataset's URL must lead to a file, found over 5 redirects; use the file's own URL",
    )


def _forbidden() -> StageError:
    return StageError(
        Reason.DATASET_ADDRESS_FORBIDDEN,
        "the dataset's URL must lead to a public address, found a private, loopback, link-local or "
        "reserved one; an administrator can allow such addresses with trainer.limits.allowPrivateAddresses",
    )


def _unavailable(found: str) -> StageError:
    return StageError(
        Reason.DATASET_UNAVAILABLE,
        f"could not download the dataset: {found}; check that the server is up and reachable from the cluster, "
        "or wait longer for it with network.retrySeconds",
    )


def _error(verdict: Verdict) -> Exception:
    """Make the error for a verdict that is not a success."""
    if verdict.action in {Action.RETRY, Action.RESTART} or verdict.reason is None:
        return Outage(verdict.found, verdict.pause_seconds)
    wanted, remedy = {
        Reason.DATASET_URL_EXPIRED: (
            "the signed URL must still be valid",
            "sign a new one, update the Secret and create the job again",
        ),
        Reason.DATASET_NOT_FOUND: ("the dataset's URL must lead to a file", "check the URL in the Secret"),
        Reason.DATASET_ACCESS_DENIED: (
            "the dataset's server must grant access",
            "put a URL with read access to the dataset into the Secret",
        ),
        Reason.DATASET_UNAVAILABLE: (
            "the dataset's server must send the file",
            "check the URL in the Secret",
        ),
    }[verdict.reason]
    return StageError(verdict.reason, f"{wanted}, found {verdict.found}; {remedy}")
