"""`python -m shared.db`."""

import signal
import sys

from shared.db.cli import main

if __name__ == "__main__":
    code = main()
    # It is done, and told: what comes now would only be a traceback of Python's own end.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    sys.exit(code)
