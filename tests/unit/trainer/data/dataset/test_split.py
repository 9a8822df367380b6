from __future__ import annotations

import json

from finetune_trainer.data.conversations.conversation import parse_conversation
from finetune_trainer.data.dataset.split import conversation_digest, sample_key

from tests.support.masks import chat


def test_the_sample_key_depends_on_content_seed_and_excluded_answers() -> None:
    row = chat(("user", "x"), ("assistant", "y"), ("user", "z"), ("assistant", "w"))
    digest = conversation_digest(parse_conversation(row, "Keep"))
    assert digest == conversation_digest(parse_conversation(json.loads(json.dumps(row)), "Keep"))
    assert sample_key(digest, seed=1) == sample_key(digest, seed=1) != sample_key(digest, seed=2)
    row["messages"][1]["weight"] = 0
    assert conversation_digest(parse_conversation(row, "Keep")) != digest
