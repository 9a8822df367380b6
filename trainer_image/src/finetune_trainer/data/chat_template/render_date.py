"""Pins the date that templates write into prompts.

A server writes the date of the request. Training writes the date on which its data was first rendered. The date is the
same in every row and after every restart, so that a stage killed at midnight changes no token id. Users can set a
date if the template has an argument for it (`chatTemplateArguments: {date_string: ...}`).
"""

from __future__ import annotations

import datetime
from typing import TYPE_CHECKING

from finetune_trainer.workspace.layout import write_text_atomically

if TYPE_CHECKING:
    from pathlib import Path

    from finetune_trainer.data.chat_template.template import ChatTemplate

_FILE = "rendered-at.txt"


def pin_render_date(template: ChatTemplate, workspace: Path) -> ChatTemplate:
    """Return the template with the date of its first rendering in this workspace, if it writes a date."""
    if not template.writes_date:
        return template
    path = workspace / _FILE
    try:
        return template.at(datetime.datetime.fromisoformat(path.read_text(encoding="ascii").strip()))
    except (FileNotFoundError, ValueError):
        # There is no file yet, or the node died while it was written.
        write_text_atomically(path, template.render_date.isoformat())
        return template
