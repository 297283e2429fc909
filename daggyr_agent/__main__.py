"""`python -m daggyr_agent` is `daggyr-agent`: the program's entry point."""

from __future__ import annotations

from daggyr.daemon import end_without_a_word
from daggyr.standard_streams import claim, leave_quietly


def main() -> None:
    """Run the agent with the command line's arguments; leaves by SystemExit."""
    end_without_a_word()
    claim()  # before anything that the agent imports can open a file
    from .main import main as agent

    try:
        agent()
    finally:
        end_without_a_word()
        leave_quietly()


if __name__ == "__main__":
    main()
