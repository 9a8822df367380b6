"""Gives each conversation a sample key from its content and the seed; order and machine do not matter."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from finetune_trainer.data.conversations.conversation import Conversation


def conversation_digest(conversation: Conversation) -> bytes:
    """Return a 16-byte digest of messages, tools and excluded answers; equal conversations have equal digests."""
    parts: list[object] = [conversation.messages, conversation.tools]
    if conversation.untrained:
        parts.append(sorted(conversation.untrained))
    canonical = json.dumps(parts, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.blake2b(canonical.encode(), digest_size=16).digest()


def sample_key(digest: bytes, seed: int) -> int:
    """Return the sample key (64 bits) of a conversation; the lowest keys are held out."""
    return int.from_bytes(
        hashlib.blake2b(digest, digest_size=8, salt=seed.to_bytes(8, "little")).digest(), "big"
    )
