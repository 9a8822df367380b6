"""`python -m finetune_operator`: the operator's process. Settings: see settings.py."""

from __future__ import annotations

import asyncio
import logging
import os
import sys

from finetune_operator.app import Operator
from finetune_operator.errors import SettingsError
from finetune_operator.runtime.logs import configure_logging
from finetune_operator.settings import load_settings


async def _run() -> None:
    settings = load_settings(os.environ)
    configure_logging(settings.log_level)
    await Operator(settings, os.environ).run()


def main() -> None:
    """Run until told to stop. Exit code 2 for unusable settings, 1 for any other failure."""
    try:
        asyncio.run(_run())
    except SettingsError as error:
        print(f"finetune-operator: {error}", file=sys.stderr)
        sys.exit(2)
    except Exception:
        logging.getLogger("finetune_operator").exception("the operator ended")
        sys.exit(1)


if __name__ == "__main__":
    main()
