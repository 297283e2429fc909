"""The program `daggyr-agent` with all the time in the world: `python patient_agent.py`, then its arguments.

Nothing but its patience differs: how long it waits for another to let its folder go, for a welcome, for killed processes to be
gone, for its last results to be taken, and between SIGTERM and SIGKILL. Tests whose outcome is decided by what others do start
this one, for those may stand still at any moment; a test of such a limit starts the program itself.
"""

from __future__ import annotations

from daggyr_agent import agent, session, state
from daggyr_agent.main import main

PATIENCE = 300.0  # seconds: as long as tests wait for anything

for module, names in (
    (agent, ("DEFAULT_GRACE", "_DELIVERY_SECONDS", "_HALT_SECONDS")),
    (session, ("DEFAULT_GRACE", "_LEAVE_SECONDS", "_WELCOME_SECONDS")),
    (state, ("_RELEASE_SECONDS",)),
):
    for name in names:
        assert hasattr(module, name)
        setattr(module, name, PATIENCE)

if __name__ == "__main__":
    main()
