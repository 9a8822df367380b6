from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from finetune_trainer.data.chat_template.content_parts import learn_part_roles, with_parts
from finetune_trainer.data.rows.rejection import RowReason, RowRejected

EVERY_ROLE = frozenset({"system", "developer", "user", "assistant", "tool"})


class Rendering:
    """Renders content in parts for some roles, as strings for others; other content is a TemplateRefused."""

    def __init__(self, parts: frozenset[str], rejected: frozenset[str] = frozenset()) -> None:
        self.parts = parts
        self.rejected = rejected

    def __call__(self, messages: Sequence[Mapping[str, Any]], tools: Any, /, *, generation: bool) -> str:
        return "".join(self.text(message) for message in messages) + f"{tools or ''}{generation}"

    def text(self, message: Mapping[str, Any]) -> str:
        content = message["content"]
        if message["role"] in self.rejected or (content and isinstance(content, str)) == (
            message["role"] in self.parts
        ):
            raise RowRejected(RowReason.TEMPLATE_REFUSED, "messages", "another form")
        return content if isinstance(content, str) else "".join(part["text"] for part in content)


def test_only_the_named_roles_get_parts() -> None:
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": "q", "name": "n"},
        {"role": "assistant", "content": "a"},
        {"role": "user", "content": [{"type": "text", "text": "given"}]},
        {"role": "user"},
    ]
    found = with_parts(messages, frozenset({"user"}))
    assert found[0] == {"role": "user", "name": "n", "content": [{"type": "text", "text": "q"}]}
    assert found[1:] == messages[1:]


def test_a_template_of_strings_needs_no_parts() -> None:
    assert learn_part_roles(Rendering(frozenset())) == frozenset()


def test_a_template_of_parts_needs_them_for_every_role() -> None:
    assert learn_part_roles(Rendering(EVERY_ROLE)) == EVERY_ROLE


def test_a_role_that_differs_from_the_others_is_found() -> None:
    assert learn_part_roles(Rendering(frozenset({"user", "system"}))) == {"user", "system"}


def test_a_template_that_accepts_both_forms_gets_strings() -> None:
    def render(messages: Sequence[Mapping[str, Any]], _tools: Any, /, *, generation: bool) -> str:
        texts = [
            content if isinstance(content, str) else content[0]["text"]
            for content in (message["content"] for message in messages)
        ]
        return "".join(texts) + str(generation)

    assert learn_part_roles(render) == frozenset()


def test_parts_written_out_as_text_do_not_count_as_shown() -> None:
    """`{{ message.content }}` writes a list as Python does; the words are there, but the form is wrong."""

    def render(messages: Sequence[Mapping[str, Any]], _tools: Any, /, *, generation: bool) -> str:
        if any(message["role"] == "user" and isinstance(message["content"], str) for message in messages):
            raise RowRejected(RowReason.TEMPLATE_REFUSED, "messages", "parts only")
        return "".join(str(message["content"]) for message in messages) + str(generation)

    assert learn_part_roles(render) == frozenset()


def test_a_role_that_no_form_shows_keeps_the_form_of_the_others() -> None:
    found = learn_part_roles(Rendering(EVERY_ROLE, rejected=frozenset({"developer"})))
    assert found == EVERY_ROLE
