"""Names what a text is that holds no rows: a page, a document, a program, a log, or rows in a notation that is not JSON."""

from __future__ import annotations

import base64
import binascii
import re
from typing import TYPE_CHECKING, NamedTuple

from finetune_trainer.data.rows.columns import KNOWN
from finetune_trainer.data.rows.excerpts import excerpt
from finetune_trainer.data.rows.file_kinds import COMPRESSED, file_kind
from finetune_trainer.data.rows.kind import Kind
from finetune_trainer.data.rows.strict_json import JsonError, parse_json

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_CHARACTERS = 1 << 16
_LINES = 200
_LINE_CHARACTERS = 2000
_TITLE_CHARACTERS = 60

_JSON_LINES = "write one JSON object per line"
_PROSE = "write its contents as questions and answers, one JSON object per line"
_ROWS = "give the file with the rows"
_NO_LITERALS = "write each row with `json.dumps`, not with `str` or `repr`"

_PYTHON = (
    r"from [\w.]+ import |import [\w.]+(?: as \w+|(?:, ?[\w.]+)*)\s*(?:#.*)?$|(?:async )?def \w+\(|class \w+[(:]"
    r"|if __name__ =="
)
_JAVASCRIPT = r"(?:export )?(?:const|let|var) [\w{].* = |module\.exports|export default|\(?function\b.*\{"
_OTHER_SOURCE = r"#include [<\"]|package [\w.]+;?$|(?:public |abstract )class \w+|using namespace |fn \w+\(|\w+ = [\[{(]\s*$"
_SQL = r"(?i)(?:insert into [`\"\w.]+ ?(?:\(|values)|create table\b|drop table\b)|-- (?:mysql|postgresql) "
# A line with such a beginning shows the kind, wherever it stands among the first lines.
_LINE_KINDS = tuple(
    (re.compile(pattern), Kind(what, remedy))
    for pattern, what, remedy in (
        (r"sep=.\s*$", "a table below a line `sep=`, which only spreadsheets read", "remove that line"),
        (r"#!", "a program (a script)", _ROWS),
        (r"\{[%#{]-?", "a Jinja template", f"{_ROWS}; a chat template belongs into `model.chatTemplate`"),
        (_PYTHON, "Python source", _ROWS),
        (_JAVASCRIPT, "JavaScript source", "write the rows as JSON, without a program around them"),
        (_OTHER_SOURCE, "program source", _ROWS),
        (r"//|/\*", "JSON or source with comments", f"{_JSON_LINES} without comments"),
        (_SQL, "an SQL dump", "export the table as CSV or as JSON Lines"),
        (r"diff --git |Index: \S+$|@@ -\d", "a patch", _ROWS),
        (r"\\(?:documentclass|begin\{document\})", "a LaTeX document", _PROSE),
        (r"@(?:article|book|inproceedings|misc)\{", "a BibTeX file", _ROWS),
        (r"WEBVTT\b|\d\d:\d\d:\d\d[,.]\d{3} --> ", "subtitles", _PROSE),
        (r"From \S+@\S+ |(?:Return-Path|Received|Delivered-To): ", "e-mail", _PROSE),
    )
)
_RENDERED = re.compile(
    r"<\|im_start\|>|<\|(?:user|assistant|start_header_id|start)\|>|\[INST\]|<start_of_turn>|### (?:Instruction|Human|Assistant)\b"
)
_TRANSCRIPT = re.compile(
    r"[*_#>\[(\"' ]{0,4}(?:(?i:user|human|assistant|bot|chatgpt)|(?i:s)ystem|AI|Model|Q|A|Question|Answer|Customer|Agent)\W{0,3}:"
)
_HEADING = re.compile(
    r"#{1,6} \S|```|~~~|\|.*\|\s*$|\|?\s*:?-{3,}:?\s*\||!?\[[^\]]*\]\([^)]*\)|=====|\*\*.+\*\*"
)
_YAML_LINE = re.compile(r"""\s*(?:- )*(?:[\w./-]+|"[^"]*"|'[^']*')\s*:(?:\s|$)|\s*- |\s+\S|\.\.\.$|---|#""")
_YAML_KEY = re.compile(r"""\s*(?:- )*(?:[\w./-]+|"[^"]*"|'[^']*')\s*:(?:\s|$)""")
_SECTION = re.compile(r"\[\[?[\w.\"' -]+\]\]?\s*$")
_SETTING = re.compile(r"[\w.\"-]+\s*=")
_LOG = re.compile(
    r"\[?(?:\d{4}[-/]\d\d[-/]\d\d|[A-Z][a-z]{2}\s+\d{1,2} \d\d:\d\d|\d\d:\d\d:\d\d|[\d.]+ - - \["
    r"|(?:DEBUG|INFO|WARN|WARNING|ERROR|TRACE|[IWEF]\d{4} ))"
)
_LITERAL = re.compile(
    r"""[\[({]+\s*(?:u?'(?:[^'\\]|\\.)*'|[-\d.]+|None|True|False)\s*[:,\])]|(?:OrderedDict|dict)\("""
)
_EVENT = re.compile(r"(?:data|event|id):")
_BASE64 = re.compile(r"[A-Za-z0-9+/_-]{16,}={0,2}$")
_ADDRESS = re.compile(r"(?:https?|s3|gs|hf|ftp|azure|file)://\S+$")
_MARKUP = re.compile(r"(?is)\s*<(?:[!?]|[a-z][\w:.-]*[\s>/])")
_HTML = re.compile(
    r"(?i)<(?:!doctype\s+html|html|head|body|title|script|div|table|meta|p|a|span|form|iframe|h[1-6])\b"
)
_TITLE = re.compile(r"(?is)<title[^>]*>\s*(.{0,300}?)\s*</title>")
_CODE = re.compile(r"(?is)<Error>.{0,500}?<Code>\s*(\w{1,60})\s*</Code>")
_FRONT_MATTER = re.compile(r"---\s*\n.*?\n---\s*\n\s*(?P<body>\S[^\n]*)", re.DOTALL)


class _Text(NamedTuple):
    """The beginning of a text, and its first lines that are not blank, cut to a length."""

    whole: str
    lines: Sequence[str]


def text_kind(text: str) -> Kind | None:
    """Return what this beginning of a text shows it to be; None if it shows nothing.

    The text must not be rows that can be read: JSON and tables are not recognized here.
    """
    whole = text[:_CHARACTERS].lstrip("\ufeff")
    lines = [line[:_LINE_CHARACTERS] for line in whole.splitlines() if line.strip()][:_LINES]
    if not lines:
        return None
    return next((kind for kind in (rule(_Text(whole, lines)) for rule in _RULES) if kind is not None), None)


def _rendered(text: _Text) -> Kind | None:
    if sum(bool(_RENDERED.search(line)) for line in text.lines) * 10 < len(text.lines) or _looks_like_html(
        text.whole
    ):
        return None
    return Kind(
        "text that a chat template has already rendered",
        "write each conversation as `messages`, so that the labels can be proven",
    )


def _markup(text: _Text) -> Kind | None:
    if not _MARKUP.match(text.whole):
        return None
    if _looks_like_html(text.whole):
        title = _TITLE.search(text.whole)
        titled = (
            f" titled {excerpt(' '.join(title[1].split()), _TITLE_CHARACTERS)!r}"
            if title and title[1]
            else ""
        )
        return Kind(
            f"an HTML page{titled}, often a login or error page in place of the file",
            "give the address of the file itself (on the Hub with /resolve/ instead of /blob/), and a token if it is private",
        )
    code = _CODE.search(text.whole)
    if code:
        return Kind(
            f"an XML error document of an object store ({code[1]})",
            "give an address that answers with the file, and the rights to read it",
        )
    return Kind("an XML document", _JSON_LINES)


def _looks_like_html(text: str) -> bool:
    return bool(_MARKUP.match(text) and _HTML.search(text[:4096]))


def _address(text: _Text) -> Kind | None:
    if len(text.lines) > 3 or not all(_ADDRESS.match(line.strip()) for line in text.lines):
        return None
    return Kind(
        "an address instead of the file itself",
        "give the address as the source, or upload the file behind it",
    )


def _commas(text: _Text) -> Kind | None:
    return _share(
        [line for line in text.whole.splitlines() if line.strip()][:_LINES],
        _has_commas,
        Kind(
            "JSON objects with a comma after each, as in an array without its brackets",
            f"{_JSON_LINES} without commas between them",
        ),
    )


def _literals(text: _Text) -> Kind | None:
    return _share(
        text.lines,
        lambda line: bool(_LITERAL.match(line.strip())),
        Kind("Python's own notation, which is not JSON", _NO_LITERALS),
    )


def _events(text: _Text) -> Kind | None:
    return _share(
        text.lines,
        lambda line: bool(_EVENT.match(line)),
        Kind("a stream of server-sent events", f"{_JSON_LINES} without `data:` before it"),
    )


def _transcript(text: _Text) -> Kind | None:
    if (
        sum(bool(_TRANSCRIPT.match(line)) for line in text.lines) * 3 < len(text.lines)
        or len(text.lines) == 1
    ):
        return None
    return Kind(
        "a written conversation",
        'write each conversation as {"messages": [{"role": ..., "content": ...}, ...]}',
    )


def _logs(text: _Text) -> Kind | None:
    return _share(text.lines, lambda line: bool(_LOG.match(line)), Kind("a log file", _ROWS))


def _by_line(text: _Text) -> Kind | None:
    for pattern, kind in _LINE_KINDS:
        if any(pattern.match(line) for line in text.lines):
            return kind
    return None


def _settings(text: _Text) -> Kind | None:
    fits = sum(
        bool(_SECTION.match(line) or _SETTING.match(line) or line[0] in "#; \t") for line in text.lines
    )
    if not any(_SECTION.match(line) for line in text.lines) or fits * 10 < 7 * len(text.lines):
        return None
    return Kind("a settings file (TOML or INI)", _JSON_LINES)


def _markdown(text: _Text) -> Kind | None:
    headings = sum(bool(_HEADING.match(line)) for line in text.lines)
    keys = sum(bool(_YAML_KEY.match(line)) for line in text.lines)
    front = _FRONT_MATTER.match(text.whole)
    if (front and not _YAML_LINE.match(front["body"])) or (front and _HEADING.match(front["body"])):
        return Kind("a Markdown document", _PROSE)
    return Kind("a Markdown document", _PROSE) if headings and keys * 2 < len(text.lines) else None


def _yaml(text: _Text) -> Kind | None:
    keys = sum(bool(_YAML_KEY.match(line)) for line in text.lines)
    fits = sum(bool(_YAML_LINE.match(line)) for line in text.lines)
    items = len(text.lines) > 1 and all(line.startswith("- ") for line in text.lines)
    mapping = keys > 0 and fits * 10 >= 9 * len(text.lines)
    if not (mapping or items or text.whole.startswith(("---", "%YAML"))):
        return None
    return Kind("a YAML document", f"convert it to JSON: {_JSON_LINES}")


def _bars(text: _Text) -> Kind | None:
    names = [name.strip().lower() for name in text.lines[0].split("|")]
    if len(names) < 2 or not all(names) or not any(name in KNOWN for name in names):
        return None
    return Kind("a table separated by |", "separate its columns with commas, tabs or semicolons")


def _base64(text: _Text) -> Kind | None:
    joined = "".join(line.strip() for line in text.lines)
    if not all(_BASE64.match(line.strip()) for line in text.lines[:-1] or text.lines) or len(joined) < 64:
        return None
    if " " in joined or not re.search(r"\d", joined):
        return None
    try:
        content = base64.b64decode(
            joined[: len(joined) // 4 * 4], altchars=b"-_" if re.search("[-_]", joined) else None
        )
    except binascii.Error:
        return None
    inside = file_kind(content)
    holds = (
        " of compressed data" if content.startswith(COMPRESSED) else f" of {inside.what}" if inside else ""
    )
    return Kind(f"text in base64{holds}", "decode it before the upload (in a ConfigMap, use `binaryData`)")


def _share(lines: Sequence[str], shows: Callable[[str], bool], kind: Kind) -> Kind | None:
    """Return the kind if most of the lines show it."""
    return kind if sum(map(shows, lines)) * 2 > len(lines) else None


def _has_commas(line: str) -> bool:
    """Return True for JSON objects with a comma after each."""
    stripped = line.strip()
    bare = stripped.removesuffix(",")
    try:
        values = parse_json(f"[{bare}]")
    except JsonError:
        return False
    return (len(values) > 1 or bare != stripped) and all(isinstance(value, dict) for value in values)


# The first that fits is the name. Those that few texts fit come first.
_RULES: tuple[Callable[[_Text], Kind | None], ...] = (
    _address,
    _rendered,
    _markup,
    _commas,
    _literals,
    _events,
    _logs,
    _bars,
    _by_line,
    _base64,
    _settings,
    _transcript,
    _markdown,
    _yaml,
)
