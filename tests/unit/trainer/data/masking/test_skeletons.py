from __future__ import annotations

from typing import Any

from finetune_trainer.data.conversations.conversation import answer_of
from finetune_trainer.data.masking.skeletons import (
    Skeleton,
    literals_of,
    mask_conversation,
    matches,
    shape_of,
)

_CALL = {"id": "a", "type": "function", "function": {"name": "look", "arguments": {"x": 1}}}
_MESSAGES: list[dict[str, Any]] = [
    {"role": "system", "content": "be kind"},
    {"role": "user", "content": "look it up"},
    {"role": "assistant", "content": "", "tool_calls": [_CALL]},
    {"role": "tool", "content": "found", "name": "look"},
    {"role": "assistant", "content": "<think>\nwhy\n</think>\n\nyes"},
]


def test_words_become_sentinels_and_the_shape_stays() -> None:
    masked = mask_conversation(_MESSAGES, calls=False)
    assert [message["role"] for message in masked.messages] == [message["role"] for message in _MESSAGES]
    assert "be kind" not in str(masked.messages)
    assert masked.messages[2] == _MESSAGES[2]
    assert masked.messages[4]["content"].startswith("<think>\n")
    assert shape_of(masked.messages, None) == shape_of(_MESSAGES, None)


def test_names_of_earlier_calls_become_sentinels_on_demand() -> None:
    masked = mask_conversation(_MESSAGES, calls=True)
    (name,) = masked.calls[2]
    assert masked.messages[2]["tool_calls"][0]["function"] == {"name": name, "arguments": {"x": 1}}
    assert masked.left_out_calls("nothing") == (2,)
    assert masked.left_out_calls(name) == ()


def test_messages_and_words_that_a_prompt_lacks_are_named() -> None:
    masked = mask_conversation(_MESSAGES, calls=False)
    written = "".join(message["content"] for message in masked.messages if message["role"] != "system")
    assert masked.left_out(written) == (0,)


def test_words_do_not_change_the_shape_but_roles_and_calls_do() -> None:
    other = [{**_MESSAGES[0], "content": "be brief"}, *_MESSAGES[1:]]
    assert shape_of(other, None) == shape_of(_MESSAGES, None)
    assert shape_of(_MESSAGES[1:], None) != shape_of(_MESSAGES, None)
    assert shape_of(_MESSAGES, [{}]) != shape_of(_MESSAGES, None)


def test_text_of_the_template_around_an_answer_has_to_agree() -> None:
    answer = answer_of({"role": "assistant", "content": "yes"})
    skeleton = Skeleton(literals_of("final: yes<|end|>", ["yes"]))
    assert matches("final:  yes <|end|>", skeleton, answer)
    assert not matches("other: yes<|end|>", skeleton, answer)
    assert not matches("final: yes<|end|>", Skeleton(None), answer)


def test_an_answer_that_repeats_the_template_is_still_recognized() -> None:
    answer = answer_of({"role": "assistant", "content": "final"})
    assert matches("final: final<|end|>", Skeleton(("final:", "<|end|>")), answer)
    assert not matches("final: other<|end|>", Skeleton(("final:", "<|end|>")), answer)
