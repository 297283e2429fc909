"""The one form of the lines that the server and the agent write to standard error.

    2026-03-01 12:00:00,123 daggyr-server WARNING the words

Both programs call `log_to_stderr` once, before anything else can log. What goes into a line is for whoever logs it.
"""

from __future__ import annotations

import logging
import sys


def log_to_stderr(program: str, level: str) -> None:
    """Log what is of `level` or above; local time with milliseconds, and the program, whose lines often share a file."""
    logging.basicConfig(level=level.upper(), format=f"%(asctime)s {program} %(levelname)s %(message)s", stream=sys.stderr)
