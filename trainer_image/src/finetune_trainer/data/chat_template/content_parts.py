"""Learns from sentinels whether a template reads message content as a string or as a list of parts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from finetune_trainer.data.rows.rejection import RowRejected

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

_ALL = frozenset({"system", "developer", "user", "assistant", "tool"})
# Strings come first: servers send them unless a template accepts only parts.
_CANDIDATES = (
    frozenset[str](),
    _ALL,
    frozenset({"user"}),
    _ALL - {"assistant"},
    frozenset({"user", "assistant"}),
)
_USER, _ANSWER, _WORD = "zqx0031vkj", "zqx0032vkj", "zqx0033vkj"
# Python or JSON writes this if a template treats a part as text.
_SPELLED_PART = ("'type'", '"type"', "&#39;type")


class Render(Protocol):
    """Renders messages as a chat template does; `generation` adds the prompt for the assistant's next turn."""

    def __call__(self, messages: Sequence[Mapping[str, Any]], tools: Any, /, *, generation: bool) -> str:
        """Return the rendered text. Raises RowRejected(TemplateRefused) if the template rejects the messages."""


def with_parts(messages: Iterable[Mapping[str, Any]], roles: frozenset[str]) -> list[Mapping[str, Any]]:
    """Give messages of these roles their content as a list of one text part."""
    return [
        {**message, "content": [{"type": "text", "text": message["content"]}]}
        if message["role"] in roles and isinstance(message.get("content"), str)
        else message
        for message in messages
    ]


def learn_part_roles(render: Render) -> frozenset[str]:
    """Return the roles whose content must be a list of parts; the set is empty if strings are rendered.

    Multimodal models have such templates. Servers render text-only messages for these models as parts too.
    """
    question: list[dict[str, Any]] = [{"role": "user", "content": _USER}]
    answered = [*question, {"role": "assistant", "content": _ANSWER}]
    roles = next(
        (
            roles
            for roles in _CANDIDATES
            if _shows(render, question, roles, [_USER], generation=True)
            and _shows(render, answered, roles, [_USER, _ANSWER], generation=False)
        ),
        frozenset[str](),
    )
    for role in ("system", "developer"):
        roles = _change_if_needed(render, role, [{"role": role, "content": _WORD}, *answered], roles)
    function = {"name": "canary", "arguments": {"key": "value"}}
    call = {"type": "function", "id": "canary001", "function": function}
    results = {"role": "tool", "name": "canary", "tool_call_id": "canary001", "content": _WORD}
    called: dict[str, Any] = {"role": "assistant", "content": "", "tool_calls": [call]}
    asked = [*question, called, results]
    return _change_if_needed(render, "tool", [*asked, {"role": "assistant", "content": _ANSWER}], roles)


def _change_if_needed(
    render: Render, role: str, messages: Sequence[Mapping[str, Any]], roles: frozenset[str]
) -> frozenset[str]:
    """Change the form of one role's content if only the other form shows it."""
    other = roles ^ {role}
    if _shows(render, messages, roles, [_WORD], generation=False):
        return roles
    return other if _shows(render, messages, other, [_WORD], generation=False) else roles


def _shows(
    render: Render,
    messages: Sequence[Mapping[str, Any]],
    roles: frozenset[str],
    words: list[str],
    *,
    generation: bool,
) -> bool:
    try:
        text = render(with_parts(messages, roles), None, generation=generation)
    except RowRejected:
        return False
    return all(word in text for word in words) and not any(spelled in text for spelled in _SPELLED_PART)
