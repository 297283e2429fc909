"""`daggyr-server` that kills itself with SIGKILL before a step: `python stepwise_server.py FOLDER NUMBER`, then its arguments.

A step makes, renames, links or removes a file in FOLDER; the first has number 1. Python tells of each before it is done (audit
events, https://docs.python.org/3/library/audit_events.html). Nothing else differs. test_copies_killed.py starts it.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

from daggyr_server.main import main

folder, number, steps = sys.argv.pop(1), int(sys.argv.pop(1)), 0


def step(event: str, arguments: tuple[Any, ...]) -> None:
    global steps
    makes = event == "open" and isinstance(arguments[2], int) and arguments[2] & os.O_CREAT
    if not makes and event not in ("os.rename", "os.link", "os.remove"):
        return
    if not isinstance(arguments[0], int) and folder in os.fsdecode(arguments[0]):
        steps += 1
        if steps == number:
            os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    sys.addaudithook(step)
    main()
