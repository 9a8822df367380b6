"""Whether a template reads a message's content as a string or as a list of parts, learned with sentinels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from finetune_trainer.data.rows.refusal import RowRefused

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from finetune_trainer.data.chat_template.template import ChatTemplate

_ALL = frozenset({"system", "developer", "user", "assistant", "tool"})
# Strings first: servers send them unless a template only takes parts.
_CANDIDATES = (
    frozenset[str](),
    _ALL,
    frozenset({"user"}),
    _ALL - {"assistant"},
    frozenset({"user", "assistant"}),
)
_USER, _ANSWER, _WORD = "zqx0031vkj", "zqx0032vkj", "zqx0033vkj"
# What Python or JSON would write of a part that a template takes for text.
_SPELLED_PART = ("'type'", '"type"', "&#39;type")


def with_parts(messages: Iterable[Mapping[str, Any]], roles: frozenset[str]) -> list[Mapping[str, Any]]:
    """Give messages of these roles their content as a list of one text part."""
    return [
        {**message, "content": [{"type": "text", "text": message["content"]}]}
        if message["role"] in roles and isinstance(message.get("content"), str)
        else message
        for message in messages
    ]


def learn_part_roles(template: ChatTemplate) -> frozenset[str]:
    """Return the roles whose content must be a list of parts; none of them where strings are rendered.

    Text-only rows for a model that also sees pictures are rendered so, as its servers render them.
    """
    question: list[dict[str, Any]] = [{"role": "user", "content": _USER}]
    talk = [*question, {"role": "assistant", "content": _ANSWER}]
    roles = next(
        (
            roles
            for roles in _CANDIDATES
            if _shows(template, question, roles, [_USER], generation=True)
            and _shows(template, talk, roles, [_USER, _ANSWER], generation=False)
        ),
        frozenset[str](),
    )
    for role in ("system", "developer"):
        roles = _settled(template, role, [{"role": role, "content": _WORD}, *talk], roles)
    function = {"name": "canary", "arguments": {"key": "value"}}
    call = {"type": "function", "id": "canary001", "function": function}
    results = {"role": "tool", "name": "canary", "tool_call_id": "canary001", "content": _WORD}
    called: dict[str, Any] = {"role": "assistant", "content": "", "tool_calls": [call]}
    asked = [*question, called, results]
    return _settled(template, "tool", [*asked, {"role": "assistant", "content": _ANSWER}], roles)


def _settled(
    template: ChatTemplate, role: str, messages: Sequence[Mapping[str, Any]], roles: frozenset[str]
) -> frozenset[str]:
    """Change the form of one role's content where only the other form shows it."""
    other = roles ^ {role}
    if _shows(template, messages, roles, [_WORD], generation=False):
        return roles
    return other if _shows(template, messages, other, [_WORD], generation=False) else roles


def _shows(
    template: ChatTemplate,
    messages: Sequence[Mapping[str, Any]],
    roles: frozenset[str],
    words: list[str],
    *,
    generation: bool,
) -> bool:
    try:
        text = template.render(with_parts(messages, roles), None, generation=generation)
    except RowRefused:
        return False
    return all(word in text for word in words) and not any(spelled in text for spelled in _SPELLED_PART)
