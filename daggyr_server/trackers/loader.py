"""Finds the tracker for an address, such as `sqlite:PATH`, through the entry points of installed packages.

The server calls `make_tracker` once at its start. Nothing here opens a tracker, and no error of this file shows what follows the
kind in an address, because it may hold a password.
"""

from __future__ import annotations

from daggyr_server.plugins import UnusableClass, load_class
from daggyr_server.trackers.base import Tracker, TrackerError

GROUP = "daggyr.trackers"


def make_tracker(address: str) -> Tracker:
    """The tracker for an address, not yet opened.

    Raises TrackerError for an unknown kind, naming those that exist, and for a kind whose entry point is no tracker; the tracker
    itself raises it for an address that is malformed.
    """
    try:
        address.encode()
    except UnicodeEncodeError:
        raise TrackerError("the tracker's address is no UTF-8: give its path another name") from None
    kind = address.partition(":")[0]
    try:
        found: type[Tracker] = load_class(Tracker, "tracker", GROUP, kind)
    except UnusableClass as error:
        raise TrackerError(str(error)) from error.__cause__
    return found(address)
