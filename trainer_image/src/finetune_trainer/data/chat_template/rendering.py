"""Compiles chat templates once and renders them as transformers does.

transformers rebuilds every message at each rendering, and its sandbox checks every attribute. Rows are already plain
JSON, and a template reads the same few attributes a million times, so both happen once here. A test compares the text
with that of transformers for every template of the matrix.
"""

from __future__ import annotations

import datetime
import json
from typing import TYPE_CHECKING, Any

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.runtime
import jinja2.utils
from jinja2.sandbox import ImmutableSandboxedEnvironment

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from jinja2.parser import Parser

# transformers copies these fields to each other. Chat templates read the first; gpt-oss reads the second.
_REASONING_FIELDS = ("reasoning_content", "thinking", "reasoning")
# Rendering itself passes these names to a template.
RESERVED_ARGUMENTS = frozenset(
    {
        "messages",
        "tools",
        "documents",
        "conversations",
        "conversation",
        "chat_template",
        "add_generation_prompt",
        "continue_final_message",
        "return_assistant_tokens_mask",
        "sanitize_control_tokens",
        "tokenize",
    }
)
# Templates raise these for a conversation that they do not support: through raise_exception, by indexing or joining a
# missing value, or by multiplying a value until memory or stack end.
RENDER_ERRORS = (
    jinja2.TemplateError,
    TypeError,
    ValueError,
    LookupError,
    AttributeError,
    ArithmeticError,
    RecursionError,
    MemoryError,
)
_DICT_ATTRIBUTES = frozenset(dir(dict))


class _Sandbox(ImmutableSandboxedEnvironment):
    """The sandbox of transformers with a memory for its verdicts on attributes.

    A verdict depends only on the attribute's name and its object's type, and a plain dict has no instance attributes.
    Neither shortcut therefore changes a verdict.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._safe: dict[tuple[type, str], bool] = {}

    def getattr(self, obj: Any, attribute: str) -> Any:
        if type(obj) is dict and attribute not in _DICT_ATTRIBUTES:
            if attribute in obj:
                return obj[attribute]
            return self.undefined(obj=obj, name=attribute)
        return super().getattr(obj, attribute)

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        key = (type(obj), attr)
        safe = self._safe.get(key)
        if safe is None:
            safe = self._safe[key] = super().is_safe_attribute(obj, attr, value)
        return safe


class _TemplateRaisedError(jinja2.TemplateError):
    """The template itself rejected the conversation."""


class _GenerationTag(jinja2.ext.Extension):
    """`{% generation %}` marks the text that the model writes; the text inside is rendered unchanged."""

    tags = {"generation"}  # noqa: RUF012 -- jinja2 declares it this way

    def parse(self, parser: Parser) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        block = jinja2.nodes.CallBlock(self.call_method("_inside"), [], [], body)
        return block.set_lineno(line)

    def _inside(self, caller: jinja2.runtime.Macro) -> str:
        return str(caller())


class _Namespace(jinja2.utils.Namespace):
    """Jinja's namespace, closed to names that begin with an underscore."""

    def __init__(*args: Any, **values: Any) -> None:  # `namespace(self=...)` must work
        self = args[0]
        attributes = dict(*args[1:], **values)
        for name in attributes:
            _require_public(name)
        jinja2.utils.Namespace.__init__(self, attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _require_public(name)
        super().__setitem__(name, value)


class _Dict:
    """The part of `dict` that templates may use."""

    def __call__(self, *args: Any, **values: Any) -> dict[Any, Any]:
        return dict(*args, **values)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args)


class Renderer:
    """One template source with its arguments. The template sees `render_date` as the current time."""

    def __init__(self, source: str, arguments: Mapping[str, Any], render_date: datetime.datetime) -> None:
        """Raise jinja2.TemplateError if the source cannot be compiled."""
        environment = _Sandbox(
            trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, jinja2.ext.loopcontrols]
        )
        environment.filters["tojson"] = _tojson
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = render_date.strftime
        environment.globals["dict"] = _Dict()
        environment.globals["namespace"] = _Namespace
        self._template = environment.from_string(source)
        self._arguments = dict(arguments)

    def render(self, messages: Sequence[Mapping[str, Any]], tools: Any, *, generation: bool) -> str:
        """Render messages of plain JSON values. Raises one of RENDER_ERRORS."""
        return self._template.render(
            messages=[_with_aliases(message) for message in messages],
            tools=tools,
            documents=None,
            add_generation_prompt=generation,
            **self._arguments,
        )


def refusal(error: Exception) -> str:
    """Return why a template did not render messages, in words for the owner of the data.

    A template's own message is one. Errors of Jinja or Python name things inside the template, which no row shows.
    """
    if isinstance(error, _TemplateRaisedError):
        return (str(error).strip() or "the template rejects these messages without a message").splitlines()[
            0
        ][:200]
    if isinstance(error, jinja2.UndefinedError):
        return "the template reads a value that these messages do not have"
    if isinstance(error, MemoryError | RecursionError):
        return "the template needs more memory or depth than a row may take"
    return "the template cannot combine the values of these messages: it expects another form of content or roles"


def _with_aliases(message: Mapping[str, Any]) -> dict[str, Any]:
    for name in _REASONING_FIELDS:
        reasoning = message.get(name)
        if reasoning is not None:
            return {"thinking": reasoning, **message, "reasoning_content": reasoning}
    return message if isinstance(message, dict) else dict(message)


def _require_public(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise jinja2.exceptions.SecurityError(f"a namespace must not hold names that begin with _: {name!r}")


def _raise_exception(message: str) -> None:
    raise _TemplateRaisedError(message)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,  # noqa: FBT001, FBT002 -- templates pass them as transformers lets them
    indent: Any = None,
    separators: Any = None,
    sort_keys: bool = False,  # noqa: FBT001, FBT002
) -> str:
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )
