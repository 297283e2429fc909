"""`python -m daggyr_server.cli` is `daggyr`: the program's entry point.

It imports nothing that takes time until Ctrl-C ends the program without a traceback.
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
