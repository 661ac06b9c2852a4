"""What a signal does while Python still loads this package as a program: it ends it with one line, not a traceback.

Loading takes half a second, in which nothing has begun. In any other program the signals are left alone.
"""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType

_INTERRUPTED = 130


def end(number: int, frame: FrameType | None) -> None:
    """End the process."""
    # No print: what was interrupted may hold its lock.
    os.write(2, b"shared.db: interrupted; nothing had begun\n")
    os._exit(_INTERRUPTED)


# This is what Python has there while it looks for the module of its option -m, and imports the package for that.
if sys.argv[:1] == ["-m"] and {"shared.db", "shared.db.init_db"} & set(sys.orig_argv):
    for _number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(_number) not in (signal.SIG_IGN, None):
            signal.signal(_number, end)
