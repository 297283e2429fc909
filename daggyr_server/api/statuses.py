"""The words with which a call ends, cut so that they arrive: see `daggyr.bounds.status_text`.

The calls pass every message through here that holds what a caller sent, because that may be of any size. Nothing here decides
which calls are refused.
"""

from __future__ import annotations

from daggyr.bounds import MAX_STATUS_BYTES, status_bytes
from daggyr.bounds import status_text as fitting
from daggyr_server.spec import SpecificationError

__all__ = ["fitting", "of_specification"]


def of_specification(error: SpecificationError) -> str:
    """As many of the faults as fit, one a line, and how many more there are."""
    limit = MAX_STATUS_BYTES
    while status_bytes(text := error.text(limit)) > MAX_STATUS_BYTES and limit > 200:
        limit //= 2
    return fitting(text)
