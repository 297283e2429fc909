"""Waits for a server that is only just starting, so that `daggyr-server &` and commands can be pasted into a shell together.

`connection` calls this if the user named no server. A user who names one wants to know at once that it is not there. Nothing is
sent, and a connection that is accepted is closed again.
"""

from __future__ import annotations

import asyncio

from daggyr.address import DEFAULT_ADDRESS
from daggyr_server.cli.stdout import notice

SECONDS = 10.0  # on a quiet machine, a server starts in less than one
_PAUSE = 0.1


async def until_it_listens() -> None:
    """Wait until the default address accepts connections, but no longer than SECONDS.

    The caller's next call tells of a failure.
    """
    host, _, port = DEFAULT_ADDRESS.rpartition(":")
    loop = asyncio.get_running_loop()
    deadline = loop.time() + SECONDS
    told = False
    while True:
        try:
            _, writer = await asyncio.open_connection(host, int(port))
        except ConnectionRefusedError:
            pass
        except OSError:
            return  # waiting does not help against any other fault
        else:
            writer.close()
            return
        if loop.time() >= deadline:
            return
        if not told:
            notice(f"daggyr: no server at {DEFAULT_ADDRESS} yet; waiting {SECONDS:.0f} s for one that is just starting")
            told = True
        await asyncio.sleep(_PAUSE)
