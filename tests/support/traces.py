"""What others could read about a job, and the search for secrets in it."""

from __future__ import annotations

import base64
import html
import json
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote, unquote


@dataclass
class Traces:
    """Everything about a job that a person, a log collector or another tenant could read, by location."""

    texts: dict[str, bytes] = field(default_factory=dict)

    def add(self, place: str, text: str | bytes) -> None:
        """Replace the text of a place."""
        self.texts[place] = text if isinstance(text, bytes) else text.encode()

    def extend(self, place: str, text: str | bytes) -> None:
        """Add to the text of a place."""
        self.add(place, self.texts.get(place, b"") + (text if isinstance(text, bytes) else text.encode()))

    def add_folder(self, place: str, folder: Path) -> None:
        """Add the name and the content of every file of a folder."""
        for path in folder.rglob("*"):
            name = str(path.relative_to(folder))
            self.extend(f"{place}: names", f"{name}\n")
            if path.is_file():
                self.add(f"{place}: {name}", path.read_bytes())

    def places_of(self, secret: str) -> list[str]:
        """Return the places that contain `secret`, in any readable form."""
        forms = {
            secret,
            quote(secret, safe=""),
            unquote(secret),
            json.dumps(secret)[1:-1],
            html.escape(secret),
            base64.b64encode(secret.encode()).decode(),
        }
        return [place for place, text in self.texts.items() if any(form.encode() in text for form in forms)]
