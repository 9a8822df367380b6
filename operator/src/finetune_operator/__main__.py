"""`python -m finetune_operator` starts the operator. Its settings are described in settings.py."""

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
    """Run until a signal stops the process. The exit code is 2 for unusable settings and 1 for any other failure."""
    try:
        asyncio.run(_run())
    except SettingsError as error:
        print(f"finetune-operator: {error}", file=sys.stderr)
        sys.exit(2)
    except Exception:
        logging.getLogger("finetune_operator").exception("the operator ended with an error")
        sys.exit(1)


if __name__ == "__main__":
    main()
