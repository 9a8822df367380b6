"""Which conversations are held out: by content and seed, so that order and machine do not matter."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from finetune_trainer.data.conversation import Conversation


def conversation_digest(conversation: Conversation) -> bytes:
    """16-byte digest of a conversation's messages and tools; equal conversations have equal digests."""
    canonical = json.dumps(
        [conversation.messages, conversation.tools], sort_keys=True, separators=(",", ":"), ensure_ascii=False
    )
    return hashlib.blake2b(canonical.encode(), digest_size=16).digest()


def draw(digest: bytes, seed: int) -> int:
    """Return the lot (64 bits) that a conversation draws with this seed, whatever stands around it."""
    return int.from_bytes(
        hashlib.blake2b(digest, digest_size=8, salt=seed.to_bytes(8, "little")).digest(), "big"
    )


def held_out_rows(lots: dict[int, int], fraction: float) -> frozenset[int]:
    """Choose the rows to hold out: those with the lowest lots, `fraction` of them rounded, at least one.

    `lots` maps row numbers to what their conversations drew.
    """
    number = max(1, round(fraction * len(lots)))
    return frozenset(sorted(lots, key=lambda row: (lots[row], row))[:number])
