"""How a command that does not work ends: the exit codes, and the errors that carry one.

Commands raise `CommandError`; `main` prints it and exits with its code. Nothing here prints.
"""

from __future__ import annotations

RUN_FAILED = 1
BAD_USAGE = 2
NO_SERVER = 3
INTERRUPTED = 130


class CommandError(Exception):
    """Ends the command. `str()` is one sentence, or a line with one more for each detail."""

    def __init__(self, message: str, exit_code: int = BAD_USAGE) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class Refused(CommandError):
    """A specification that was refused: `faults` has one a line."""

    def __init__(self, what: str, faults: str) -> None:
        """`what` names the specification."""
        self.faults = [line.strip() for line in faults.splitlines() if line.strip()]
        if len(self.faults) == 1:
            super().__init__(f"{what} is refused: {self.faults[0]}")
        else:
            super().__init__("\n  ".join([f"{what} is refused:", *self.faults]))
