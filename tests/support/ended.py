"""How a `daggyr` that a test ran has ended, and what it printed.

tests/cli makes these in an event loop (daggyr_program.py), and tests/integration and tests/faults without one (deployment.py). It
starts nothing.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

# A command that follows a run prints such a line every five seconds; tests/cli/test_words.py tests that with a clock of its own.
PROGRESS = re.compile(r"run \d+ [A-Z]+: [\d,]+ of [\d,]+ tasks? ended \(")


@dataclass(frozen=True)
class Ended:
    """The exit code of a command that has ended, and what it wrote to standard output and standard error."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Standard output as one JSON document."""
        return json.loads(self.out)

    @property
    def lines(self) -> list[Any]:
        """Standard output as a JSON document a line."""
        return [json.loads(line) for line in self.out.splitlines()]

    @property
    def said(self) -> list[str]:
        """The lines of standard error without those about progress, which are there only if the command took some seconds."""
        return [line for line in self.err.splitlines() if not PROGRESS.match(line)]
