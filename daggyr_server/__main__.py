"""`python -m daggyr_server` is `daggyr-server`: the program's entry point."""

from __future__ import annotations

import sys

from daggyr.daemon import end_without_a_word
from daggyr.standard_streams import claim, leave_quietly, say


def main() -> None:
    """Run the coordinator with the command line's arguments; leaves by SystemExit."""
    end_without_a_word()
    claim()  # before anything that the coordinator imports can open a file
    from daggyr_server.main import main as serve

    try:
        serve(prog_name="daggyr-server")
    except OSError as error:  # for instance where click prints --help to a full disk
        say(f"daggyr-server: {error}")
        sys.exit(2)
    finally:
        end_without_a_word()
        leave_quietly()


if __name__ == "__main__":
    main()
