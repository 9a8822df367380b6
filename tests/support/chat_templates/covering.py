"""The conversations that each template of the matrix renders in `make test`; `make test-full` renders all."""

from __future__ import annotations

from collections import Counter
from functools import cache

from tests.support.chat_templates.adversarial_templates import adversarial_templates
from tests.support.chat_templates.conversations import conversations
from tests.support.chat_templates.edges import edge_templates
from tests.support.chat_templates.families import families
from tests.support.chat_templates.other_families import other_families
from tests.support.chat_templates.shapes import Case
from tests.support.chat_templates.templates import cases, published_families

# Conversations of one kind take the same branches of a template and differ in their words or length.
KINDS: dict[str, tuple[str, ...]] = {
    "one turn": ("single", "short", "numbers", "long"),
    "system prompt": ("system", "system multi"),
    "several turns": ("multi", "many turns"),
    "developer": ("developer",),
    "system in the middle": ("system in the middle",),
    "inline reasoning": (
        "think", "think in one line", "think multi", "think with paragraphs", "think once", "empty trace",
    ),
    "reasoning field": ("reasoning field", "reasoning field multi"),
    "tools": ("tools", "tools not offered", "tools with system", "tools and on", "parallel calls"),
    "tools without result": ("tools offered, none called", "last call open"),
    "empty answer": (
        "empty answer", "empty answer with system", "empty answer first", "empty answer last",
    ),
    "edges": ("whitespace", "newlines at edges", "windows lines"),
    "repeated words": ("repeated", "echo", "one letter over and over", "punctuation"),
    "words of templates": ("template words", "role names as text", "mentions think"),
    "markup": ("code", "braces", "json", "markup", "markdown"),
    "scripts": ("cjk", "emoji", "right to left", "combining", "control characters"),
    "order of roles": (
        "two questions in a row", "two answers in a row", "ends with a question", "answer first",
    ),
}  # fmt: skip
# A template that branches on this word sees every conversation of these kinds: each can fail on its own there.
_BRANCHES = {"think": ("inline reasoning", "reasoning field"), "tool": ("tools", "tools without result")}


def features(name: str, case: Case) -> frozenset[str]:
    """Return the features that can matter for a conversation: vocabulary, origin, and the words in branches."""
    origin = (
        "trl, for training" if name.endswith("_training")
        else "trl" if name.startswith("trl:")
        else "mistral-common" if name.startswith("mistral-common:")
        else "adversarial" if name in adversarial_templates()
        else "other family" if name in other_families()
        else "family" if name in families()
        else "edge" if name in edge_templates()
        else "published" if name in published_families()
        else "unknown"
    )  # fmt: skip
    found = {
        "thinks": "think" in case.source,
        "takes tools": "tool" in case.source,
        "takes a developer": "developer" in case.source,
        "raises": "raise_exception" in case.source,
        "trims": "trim" in case.source or "strip()" in case.source,
        "writes JSON": "tojson" in case.source,
        "marks generation": "{% generation" in case.source or "{%- generation" in case.source,
        "reads parts": bool(case.parts),
        "has arguments": bool(case.arguments),
        "names stop tokens": bool(case.stops),
        "strips after tokens": bool(case.strips),
        "rewrites": not case.faithful,
    }
    return frozenset({case.vocabulary, origin, *(feature for feature, present in found.items() if present)})


@cache
def covering_set() -> dict[str, tuple[str, ...]]:
    """Return the conversations of each template: one of every kind, and all of the kinds on which it branches.

    Templates take turns within a kind. Then conversations are added until every pair of a template feature and a
    conversation occurs. Each goes to the template with this feature that has the fewest conversations.
    """
    chosen: dict[str, set[str]] = {}
    turns: Counter[str] = Counter()
    for name, case in sorted(cases().items()):
        every = {kind for word, kinds in _BRANCHES.items() if word in case.source for kind in kinds}
        chosen[name] = set()
        for kind, titles in KINDS.items():
            if kind in every:
                chosen[name].update(titles)
            else:
                chosen[name].add(titles[turns[kind] % len(titles)])
                turns[kind] += 1
    by_feature: dict[str, list[str]] = {}
    for name, case in sorted(cases().items()):
        for feature in features(name, case):
            by_feature.setdefault(feature, []).append(name)
    for _, names in sorted(by_feature.items()):
        for title in conversations():
            if not any(title in chosen[name] for name in names):
                chosen[min(names, key=lambda name: (len(chosen[name]), name))].add(title)
    return {
        name: tuple(title for title in conversations() if title in titles) for name, titles in chosen.items()
    }
