from __future__ import annotations

from finetune_trainer.data.masking.sentinels import canary_call, canary_result, sentinel


def test_sentinels_differ_and_none_contains_another() -> None:
    words = [sentinel(number) for number in range(50)]
    assert len(set(words)) == 50
    assert not any(one in other for one in words for other in words if one != other)


def test_the_canarys_result_answers_its_call() -> None:
    (call,) = canary_call("word")["tool_calls"]
    result = canary_result("other")
    assert call["function"]["arguments"] == {"word": "word"}
    assert (call["id"], call["function"]["name"]) == (result["tool_call_id"], result["name"])
