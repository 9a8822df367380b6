"""Conversations for the mask matrix. Each message has a unique word if its kind allows one."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

_USER, _SECOND, _THIRD = "Ask URONE please?", "Now URTWO, then.", "Finally URTHREE"
_SYSTEM = "Obey SYONE always."
_ANSWER = "Say ARONE now."
_ROLES = {"s": "system", "u": "user", "a": "assistant", "d": "developer", "t": "tool"}


@dataclass(frozen=True)
class Sample:
    """A conversation and the tools that it offers."""

    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None = None

    @property
    def row(self) -> dict[str, Any]:
        """The row of a dataset with this conversation."""
        return (
            {"messages": self.messages}
            if self.tools is None
            else {"messages": self.messages, "tools": self.tools}
        )


def _chat(**turns: str) -> Sample:
    return Sample([{"role": _ROLES[key[0]], "content": text} for key, text in turns.items()])


def _call(name: str, identifier: str, **arguments: Any) -> dict[str, Any]:
    return {"type": "function", "id": identifier, "function": {"name": name, "arguments": arguments}}


def _tool(name: str) -> dict[str, Any]:
    parameters = {
        "type": "object",
        "properties": {"key": {"type": "string", "description": "what to look for"}},
        "required": ["key"],
    }
    return {
        "type": "function",
        "function": {"name": name, "description": f"Does {name}.", "parameters": parameters},
    }


_LOOKUP = [_tool("lookup"), _tool("search")]


def _tools(
    *, final: str = _ANSWER, offered: bool = True, system: bool = False, second: bool = False
) -> Sample:
    messages: list[dict[str, Any]] = [{"role": "system", "content": _SYSTEM}] if system else []
    messages += [
        {"role": "user", "content": _USER},
        {"role": "assistant", "content": "", "tool_calls": [_call("lookup", "abcdefghi", key="AGONE")]},
        {"role": "tool", "name": "lookup", "tool_call_id": "abcdefghi", "content": "Found TRONE."},
        {"role": "assistant", "content": final},
    ]
    if second:
        messages += [{"role": "user", "content": _SECOND}, {"role": "assistant", "content": "Say ARTWO."}]
    return Sample(messages, _LOOKUP if offered else None)


def _parallel() -> Sample:
    calls = [_call("lookup", "abcdefghi", key="AGONE"), _call("search", "jklmnopqr", key="AGTWO")]
    return Sample(
        [
            {"role": "user", "content": _USER},
            {"role": "assistant", "content": "", "tool_calls": calls},
            {"role": "tool", "name": "lookup", "tool_call_id": "abcdefghi", "content": "Found TRONE."},
            {"role": "tool", "name": "search", "tool_call_id": "jklmnopqr", "content": "Found TRTWO."},
            {"role": "assistant", "content": _ANSWER},
        ],
        _LOOKUP,
    )


def _traced(*traces: str) -> Sample:
    words = ("ONE", "TWO", "THREE")
    messages: list[dict[str, Any]] = []
    for word, trace in zip(words, traces, strict=False):
        messages += [
            {"role": "user", "content": f"Ask UR{word}."},
            {"role": "assistant", "content": f"Say AR{word}.", "reasoning_content": trace},
        ]
    return Sample(messages)


@cache
def conversations() -> dict[str, Sample]:
    """Return every conversation by name."""
    long = " ".join(f"word{number} and so on," for number in range(300))
    return {
        "single": _chat(u=_USER, a=_ANSWER),
        "system": _chat(s=_SYSTEM, u=_USER, a=_ANSWER),
        "multi": _chat(u=_USER, a=_ANSWER, u2=_SECOND, a2="Say ARTWO.", u3=_THIRD, a3="ARTHREE"),
        "system multi": _chat(s=_SYSTEM, u=_USER, a=_ANSWER, u2=_SECOND, a2="Say ARTWO."),
        "developer": _chat(d=_SYSTEM, u=_USER, a=_ANSWER),
        "think": _chat(u=_USER, a="<think>\nWhy RRONE\n</think>\n\nSay ARONE."),
        "think in one line": _chat(u=_USER, a="<think>Why RRONE</think>Say ARONE."),
        "think multi": _chat(
            u=_USER,
            a="<think>\nRRONE\n</think>\n\nSay ARONE.",
            u2=_SECOND,
            a2="<think>\nRRTWO\n</think>\n\nARTWO",
        ),
        "think with paragraphs": _chat(
            s=_SYSTEM,
            u=_USER,
            a="<think>\nFirst RRONE.\n\nThen RRTWO: 2 < 3.\n</think>\n\nSay ARONE.\n\nAnd ARTWO.",
        ),
        "think once": _chat(u=_USER, a=_ANSWER, u2=_SECOND, a2="<think>\nRRTWO\n</think>\n\nARTWO"),
        "empty trace": _chat(u=_USER, a="<think>\n\n</think>\n\nSay ARONE."),
        "reasoning field": _traced("Why RRONE"),
        "reasoning field multi": _traced("Why RRONE", "Why RRTWO"),
        "tools": _tools(),
        "tools not offered": _tools(offered=False),
        "tools with system": _tools(system=True),
        "tools and on": _tools(second=True),
        "tools offered, none called": Sample(_chat(u=_USER, a=_ANSWER).messages, _LOOKUP),
        "parallel calls": _parallel(),
        "last call open": Sample(_tools().messages[:2], _LOOKUP),
        "whitespace": _chat(u="  Ask URONE \n", a="\n  Say ARONE\n indented. \n"),
        "newlines at edges": _chat(
            s="\nObey SYONE\n", u="\n\nURONE\n\n", a="\n\nARONE\n\n", u2="\tURTWO", a2="\tARTWO \n"
        ),
        "repeated": _chat(u="Say ARONE", a="Say ARONE", u2="Say ARONE", a2="Say ARONE"),
        "echo": _chat(s="Yes", u="Yes", a="Yes"),
        "empty answer": _chat(u=_USER, a=""),
        "empty answer with system": _chat(s=_SYSTEM, u=_USER, a=""),
        "empty answer first": _chat(u=_USER, a="", u2=_SECOND, a2="Say ARTWO."),
        "empty answer last": _chat(u=_USER, a=_ANSWER, u2=_SECOND, a2=""),
        "short": _chat(u="a", a="b"),
        "one letter over and over": _chat(u="a", a="a", u2="a", a2="a", u3="a", a3="a"),
        "template words": _chat(u="What is user?", a="assistant", u2="And then?", a2="user"),
        "role names as text": _chat(u="system", a="user\nassistant\nsystem", u2="assistant", a2="model"),
        "numbers": _chat(u="17 * 3", a="51", u2="0", a2="00 1 2"),
        "punctuation": _chat(u="?", a=".", u2="!", a2="..."),
        "code": _chat(u=_USER, a="```python\nprint('ARONE')  # x < y > z [0]\n```"),
        "braces": _chat(u="Render {{ URONE }} {% if x %}", a="{{ ARONE }} {% endif %} {# note #}"),
        "json": _chat(u="As JSON: URONE", a='{"say": "ARONE", "list": [1, 2], "nested": {"a": null}}'),
        "markup": _chat(u="Make it bold: URONE", a="<b>ARONE</b> <br/> [link](x) a <- b && c"),
        "markdown": _chat(u=_USER, a="# Title ARONE\n\n- one\n- two\n\n| a | b |\n|---|---|\n"),
        "cjk": _chat(u="请说 URONE", a="好的,ARONE。没问题!", u2="日本語で URTWO", a2="はい、ARTWO。"),
        "emoji": _chat(u="naïve 🙂 URONE", a="ARONE 👩‍👩‍👧 größer 🇩🇪"),
        "right to left": _chat(u="قل URONE", a="حسنا ARONE שלום"),
        "combining": _chat(u="Cafe\u0301 URONE", a="ARONE e\u0301 n\u0303 \u0e01\u0e33"),
        "control characters": _chat(u="a\u00a0URONE", a="ARONE\u00a0b\u200bc\u2028d"),
        "windows lines": _chat(u="URONE\r\nplease", a="ARONE\r\nnow\r\n"),
        "long": _chat(u=f"{long} URONE", a=f"{long} ARONE"),
        "many turns": _chat(**{f"{role}{n}": f"{role} says {n}." for n in range(6) for role in "ua"}),
        "two questions in a row": _chat(u=_USER, u2=_SECOND, a=_ANSWER),
        "two answers in a row": _chat(u=_USER, a=_ANSWER, a2="Say ARTWO."),
        "ends with a question": _chat(u=_USER, a=_ANSWER, u2=_SECOND),
        "system in the middle": _chat(u=_USER, a=_ANSWER, s=_SYSTEM, u2=_SECOND, a2="Say ARTWO."),
        "answer first": _chat(a="Hello ARTWO.", u=_USER, a2=_ANSWER),
        "mentions think": _chat(
            u="What is a think tag, URONE?", a="ARONE: it holds thoughts; think of it as notes."
        ),
    }
