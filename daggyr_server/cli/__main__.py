"""The entry point of the program `daggyr`, which `python -m daggyr_server.cli` starts as well.

It first sees to it that Ctrl-C ends the program without a traceback, and imports whatever takes time after that. It never looks
at arguments.
"""

from __future__ import annotations

from typing import NoReturn

from daggyr.standard_streams import claim
from daggyr_server.cli.interruption import end_at_once


def main() -> NoReturn:
    """Run the command that the arguments name, and exit."""
    end_at_once()
    claim()
    from daggyr_server.cli.main import main as command

    command()


if __name__ == "__main__":
    main()
