"""The client of a coordinator: what the command line uses, and any other program may.

It submits, reads, watches and steers runs with the messages of `daggyr.v1`. README.md beside this folder shows a whole program.

    async with Client("127.0.0.1:2503", token=token) as client:
        run_id = await client.submit_document(io.BytesIO(document))
        run = await client.wait(run_id)
        print(run.state == State.STATE_COMPLETED)

What may be repeated is repeated with backoff: a submission under its request_id, a watch from its last change, an output from its
last byte, and calls that a busy server cancels before it looks at them. Everything else is tried once, because the program knows
better whether a second time does harm. The client never prints, reads no environment variable, and opens no file but those of
TLS.
"""

from __future__ import annotations

from daggyr.client.client import Client
from daggyr.client.documents import CHUNK_BYTES
from daggyr.client.errors import ServerError, Unreachable
from daggyr.client.following import ENDED, Change

__all__ = ["CHUNK_BYTES", "ENDED", "Change", "Client", "ServerError", "Unreachable"]
