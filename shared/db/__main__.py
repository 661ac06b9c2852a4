"""`python -m shared.db`."""

import sys

from shared.db.commands.cli import main

if __name__ == "__main__":
    sys.exit(main())
