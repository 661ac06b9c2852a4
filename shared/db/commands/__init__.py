"""The commands, one module each: arguments in, words and an exit code out.

Packages beside this one make theirs by `run_commands` and `settings_from_arguments`; what changes rows does it in an
`interruptible` block, which stops at each `check`.
"""

from shared.db.commands.arguments import Command, run_commands, settings_from_arguments
from shared.db.operations.interruption import check, interruptible

__all__ = ["Command", "check", "interruptible", "run_commands", "settings_from_arguments"]
