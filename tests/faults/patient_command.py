"""The program `daggyr` with all the time in the world: `python patient_command.py`, then its arguments.

Nothing but its patience differs: how long a watch goes on without a word from a server, while a new one is being started again
and again. The farm starts this one, because a machine may stand still at any moment and no test here is about that limit.
"""

from __future__ import annotations

from daggyr.client import Client
from daggyr_server.cli.__main__ import main

PATIENCE = 3600.0  # seconds

defaults = Client.__init__.__kwdefaults__
assert defaults is not None and "patience" in defaults
defaults["patience"] = PATIENCE

if __name__ == "__main__":
    main()
