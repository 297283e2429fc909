"""Why the driver does not do what a request asks for. The API gives each of them a status for the wire.

The words are kept apart in the whole server: a *refusal* answers a request that cannot be granted, *trouble* is what keeps a
tracker from making anything durable for now, a *fault* is in a document or a setting, and a *failure* is a task's.
"""

from __future__ import annotations

from daggyr_server.core.step import Refusal


class Refused(Exception):
    """The request cannot be granted; nothing has changed."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.message)
        self.refusal = refusal


class BeingRestored(Exception):
    """The request is about a run that the server, which has just started, has not made again so far; asking later helps."""


class Closing(Exception):
    """The server is going away; what the request asked for may or may not have been done."""
