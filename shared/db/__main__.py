"""`python -m shared.db`."""

# PYTHON_ARGCOMPLETE_OK: a shell may ask it what could be typed next

import sys

from shared.db.commands.cli import main

if __name__ == "__main__":
    sys.exit(main())
