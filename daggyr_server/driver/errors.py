"""Why the driver does not do what it was asked; the API has the status of each for the wire."""

from __future__ import annotations

from daggyr_server.core.step import Refusal


class Refused(Exception):
    """What was asked cannot be granted; nothing has changed."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.message)
        self.refusal = refusal


class Closing(Exception):
    """The server is going away; what was asked may or may not have been done."""
