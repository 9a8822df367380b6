from __future__ import annotations

from typing import Any

import pytest
from finetune_trainer.data.chat_template.template import ChatTemplate
from finetune_trainer.data.chat_template.tool_arguments import with_text_arguments

from tests.support.tiny_models import tiny_tokenizer

_CALL: dict[str, Any] = {
    "id": "a",
    "type": "function",
    "function": {"name": "f", "arguments": {"x": "größe"}},
}
_MESSAGES: list[dict[str, Any]] = [
    {"role": "user", "content": "q"},
    {"role": "assistant", "content": "", "tool_calls": [_CALL]},
]


def template(arguments: str) -> ChatTemplate:
    source = (
        "{% for m in messages %}{{ m.content or '' }}{% for c in m.tool_calls or [] %}"
        f"[{{{{ {arguments} }}}}]"
        "{% endfor %}<|im_end|>{% endfor %}"
    )
    return ChatTemplate(tiny_tokenizer(), source)


@pytest.mark.parametrize(
    ("arguments", "as_text"),
    [
        ("c.function.arguments | tojson", False),
        ("c.function.arguments", True),
        ("c.function.name + c.function.arguments", True),
        ("c.function.arguments if c.function.arguments is string else c.function.arguments | tojson", False),
        ("c.function.arguments['word'] or c.function.arguments['x']", False),
        ("c.function.name", False),
    ],
)
def test_arguments_are_given_in_the_form_that_the_template_renders(arguments: str, as_text: bool) -> None:  # noqa: FBT001 -- a case of the table
    assert template(arguments).text_arguments is as_text


def test_arguments_given_as_text_are_json() -> None:
    assert '[{"x": "größe"}]' in template("c.function.arguments").render(_MESSAGES, None, generation=False)


def test_messages_without_calls_are_passed_on() -> None:
    assert with_text_arguments(_MESSAGES)[0] is _MESSAGES[0]
    assert _CALL["function"]["arguments"] == {"x": "größe"}
