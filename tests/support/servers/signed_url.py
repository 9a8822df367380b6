"""A server with a signed URL. No message may repeat the signature."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from contextlib import contextmanager

from tests.support.servers.loopback import Script, http_server

SECRET = "X-Signature=deadbeefcafe"


@contextmanager
def serving(script: Script, context: ssl.SSLContext | None = None) -> Iterator[str]:
    """Serve the script's responses and yield the signed URL."""
    with http_server(script, context=context) as origin:
        yield f"{origin}/data.jsonl?{SECRET}"
