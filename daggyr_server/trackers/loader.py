"""Finds the tracker for an address, such as `sqlite:PATH`, through the entry points of installed packages.

The server calls `make_tracker` once at its start. Nothing here opens a tracker, and no error of this file shows what follows the
kind in an address, because it may hold a password.
"""

from __future__ import annotations

from importlib.metadata import entry_points

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
    found = {entry.name: entry for entry in entry_points(group=GROUP)}
    if kind not in found:
        raise TrackerError(f"there is no tracker {kind!r}; there are: {', '.join(sorted(found))}")
    entry = found[kind]
    where = f"{entry.value}, the entry point {kind!r} of {GROUP},"
    try:
        loaded = entry.load()
    except Exception as error:  # whatever the module of another package does at its import
        raise TrackerError(f"{where} cannot be loaded: {type(error).__name__}: {error}") from error
    if not (isinstance(loaded, type) and issubclass(loaded, Tracker)):
        raise TrackerError(f"{where} is not a subclass of daggyr_server.trackers.base.Tracker")
    if missing := sorted(loaded.__abstractmethods__):
        raise TrackerError(f"{where} is not complete, it lacks: {', '.join(missing)}")
    return loaded(address)
