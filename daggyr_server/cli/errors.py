"""The exit codes of commands, and the errors that end a command with one of them.

Commands raise `CommandError`; `main` prints it and exits with its code. Nothing here prints.
"""

from __future__ import annotations

RUN_FAILED = 1
BAD_USAGE = 2
NO_SERVER = 3
INTERRUPTED = 130


class CommandError(Exception):
    """Ends the command with `exit_code`. `str()` is one sentence, or a first line and a line for each detail."""

    def __init__(self, message: str, exit_code: int = BAD_USAGE) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class SpecRefused(CommandError):
    """A specification is refused. `faults` are the lines of its faults."""

    def __init__(self, what: str, faults: str) -> None:
        """`what` names the specification, and `faults` is a text with a fault in each line."""
        self.faults = [line.strip() for line in faults.splitlines() if line.strip()]
        if len(self.faults) == 1:
            super().__init__(f"{what} is refused: {self.faults[0]}")
        else:
            super().__init__("\n  ".join([f"{what} is refused:", *self.faults]))
