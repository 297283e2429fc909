"""Which trackers the conformance suite runs against, and what each says of itself. A new tracker adds one entry to KINDS."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import readme_examples

from daggyr_server.trackers.base import Opened, Tracker, make_tracker

OpenAgain = Callable[[], Awaitable[tuple[Tracker, Opened]]]  # the fixture `open_again`


@dataclass(frozen=True, kw_only=True)
class TrackerKind:
    """One tracker. `address` makes one from an empty folder that belongs to the test alone."""

    name: str
    address: Callable[[Path], str]
    durable: bool  # state outlives the process
    bad_addresses: tuple[str, ...] = ()  # these are malformed
    make: Callable[[str], Tracker] = make_tracker


def _journal(address: str) -> Tracker:
    """The example in the README."""
    tracker = readme_examples.module(readme_examples.TRACKERS, "daggyr_journal").JournalTracker(address)
    assert isinstance(tracker, Tracker)
    return tracker


KINDS = (
    TrackerKind(name="memory", address=lambda folder: "memory", durable=False, bad_addresses=("memory:", "memory:x")),
    TrackerKind(
        name="journal",
        address=lambda folder: f"journal:{folder}/journal",
        durable=True,
        bad_addresses=("journal", "journal:"),
        make=_journal,
    ),
)
