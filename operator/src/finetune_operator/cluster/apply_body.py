"""The body of a server-side apply. The API server reads it as YAML, whatever it looks like.

JSON is YAML but for one thing: JSON writes a character beyond U+FFFF, such as an emoji, as two escapes, and YAML refuses them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

APPLY = "application/apply-patch+yaml; charset=utf-8"
"""The content type. Without the charset, the client's library would encode the body itself, as JSON."""
# As raw text, some of these would be line breaks or forbidden in YAML.
_ESCAPED = re.compile("[\x7f-\uffff]")
_SURROGATES = range(0xD800, 0xE000)


def encode_apply(body: Mapping[str, Any]) -> bytes:
    """`body` as text that is both JSON and YAML. Half a pair of surrogates, which is no character, becomes U+FFFD."""
    return _ESCAPED.sub(_escape, json.dumps(body, ensure_ascii=False)).encode()


def _escape(match: re.Match[str]) -> str:
    code = ord(match[0])
    return f"\\u{0xFFFD if code in _SURROGATES else code:04x}"
