from __future__ import annotations

import pytest
from finetune_trainer.destinations.publisher import changed, parse_manifest, taken
from finetune_trainer.errors import Reason


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"3", b"\xff", b"[" * 100_000])
def test_a_manifest_that_is_none_names_no_spec(text: bytes) -> None:
    assert parse_manifest(text) == {}


def test_a_manifest_keeps_its_members() -> None:
    assert parse_manifest(b'{"specHash": "sha256:1"}') == {"specHash": "sha256:1"}


def test_messages_name_the_destination_and_the_remedy() -> None:
    refused = taken("bucket", "a file")
    assert refused.reason is Reason.DESTINATION_UNWRITABLE
    assert refused.message.startswith("output.destinations[bucket] must be empty")
    assert "overwrite" in refused.message
    assert changed("bucket", "merged/a").reason is Reason.DESTINATION_UNAVAILABLE
