"""Waits for a server that is only just starting, so that `daggyr-server &` and commands can be pasted into a shell together.

Commands call this before they ask the server at the default address, if the user named none. A user who names a server wants to
know at once that it is not there. Nothing is sent: a connection that is accepted is closed again.
"""

from __future__ import annotations

import asyncio

from daggyr.channel import DEFAULT_ADDRESS
from daggyr_server.cli.stdout import notice

SECONDS = 10.0  # a start takes less than one, on a machine that has nothing else to do
_PAUSE = 0.1


async def until_it_listens() -> None:
    """Return once the default address takes connections, or after SECONDS in which it refused them; the call then says so."""
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
            return  # not a matter of patience
        else:
            writer.close()
            return
        if loop.time() >= deadline:
            return
        if not told:
            notice(f"daggyr: no server at {DEFAULT_ADDRESS} yet; waiting {SECONDS:.0f} s for one that is just starting")
            told = True
        await asyncio.sleep(_PAUSE)
