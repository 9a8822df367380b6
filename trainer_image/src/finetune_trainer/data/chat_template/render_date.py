"""The moment that a job's prompts bear, for templates that write the date into them.

A server writes the day of the request. Training writes the day on which its data was first rendered, the same in
every row and after every restart, so that killing the stage over midnight changes no token id. A fixed day of one's
own is given as an argument, where the template takes one (`chatTemplateArguments: {date_string: ...}`).
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
    """Return the template as it was first rendered in this workspace, itself if it writes no date."""
    if not template.writes_date:
        return template
    path = workspace / _FILE
    try:
        return template.at(datetime.datetime.fromisoformat(path.read_text(encoding="ascii").strip()))
    except (FileNotFoundError, ValueError):
        # None yet, or cut short when the node died while it was written.
        write_text_atomically(path, template.render_date.isoformat())
        return template
