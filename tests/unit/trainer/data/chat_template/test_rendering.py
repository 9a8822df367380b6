from __future__ import annotations

import datetime
from typing import Any

import jinja2
import pytest
from finetune_trainer.data.chat_template.rendering import RENDER_ERRORS, Renderer

NOON = datetime.datetime(2026, 3, 1, 12, 30, tzinfo=datetime.UTC)


def render(source: str, *messages: dict[str, Any], tools: Any = None, **arguments: Any) -> str:
    return Renderer(source, arguments, NOON).render(messages, tools, generation=True)


def test_messages_tools_arguments_and_the_prompt_flag_reach_the_template() -> None:
    source = (
        "{{ messages[0].content }} {{ tools[0] }} {{ level }} {{ add_generation_prompt }} {{ documents }}"
    )
    assert render(source, {"role": "user", "content": "q"}, tools=["t"], level=3) == "q t 3 True None"


def test_the_template_sees_the_render_date_as_now() -> None:
    assert render("{{ strftime_now('%Y-%m-%d %H:%M') }}") == "2026-03-01 12:30"


@pytest.mark.parametrize("field", ["reasoning_content", "thinking", "reasoning"])
def test_a_reasoning_trace_has_the_names_that_templates_read(field: str) -> None:
    source = "{{ messages[0].reasoning_content }} {{ messages[0].thinking }}"
    assert render(source, {"role": "assistant", field: "why"}) == "why why"


def test_json_keeps_unicode_and_the_order_of_keys() -> None:
    """Jinja's own filter would sort keys and escape markup."""
    message = {"content": {"b": "<é>", "a": 1}}
    assert render("{{ messages[0].content | tojson }}", message) == '{"b": "<é>", "a": 1}'
    assert render("{{ messages[0].content | tojson(indent=1) }}", message).count("\n") == 3


def test_text_between_generation_tags_is_rendered_unchanged() -> None:
    source = "{% for m in messages %}[{% generation %}{{ m.content }}{% endgeneration %}]{% endfor %}"
    assert render(source, {"content": " a "}, {"content": "<b>"}) == "[ a ][<b>]"


def test_a_missing_member_is_undefined_and_not_a_method_of_dictionaries() -> None:
    source = "{{ messages[0].name is defined }} {{ messages[0].items is defined }} {{ messages[0].content }}"
    assert render(source, {"content": "c"}) == "False True c"


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update({'a': 1}) }}",
        "{{ namespace.__init__.__globals__ }}",
        "{% set ns = namespace(_hidden=1) %}",
        "{% set ns = namespace() %}{% set ns._hidden = 1 %}",
        "{{ dict.__call__.__globals__ }}",
    ],
)
def test_a_template_cannot_leave_the_sandbox(source: str) -> None:
    with pytest.raises(RENDER_ERRORS):
        render(source, {"content": "c"})


def test_a_verdict_on_an_attribute_is_the_same_the_second_time() -> None:
    renderer = Renderer(
        "{{ messages[0].content.format_map({}) if loose else 'x'.__class__.__name__ }}", {}, NOON
    )
    for _ in range(2):
        with pytest.raises(jinja2.exceptions.SecurityError):
            renderer.render([{"content": "c"}], None, generation=False)


def test_an_error_that_a_template_raises_keeps_its_message() -> None:
    with pytest.raises(jinja2.TemplateError, match="no system here"):
        render("{{ raise_exception('no system here') }}")


def test_dict_and_namespace_work_as_templates_use_them() -> None:
    source = (
        "{% set ns = namespace(count=0) %}{% for m in messages %}{% set ns.count = ns.count + 1 %}{% endfor %}"
        "{{ ns.count }} {{ dict(a=1) }} {{ dict.fromkeys(['x']) }}"
    )
    assert render(source, {"content": "c"}, {"content": "d"}) == "2 {'a': 1} {'x': None}"
