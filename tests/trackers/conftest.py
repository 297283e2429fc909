"""Each test here runs against every kind of tracker in `tracker_kinds`."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tracker_kinds import KINDS, OpenAgain, TrackerKind

from daggyr_server.trackers.base import Opened, Tracker


@pytest.fixture(params=KINDS, ids=lambda kind: kind.name)
def kind(request: pytest.FixtureRequest) -> TrackerKind:
    found = request.param
    assert isinstance(found, TrackerKind)
    return found


@pytest.fixture
async def open_again(kind: TrackerKind, tmp_path: Path) -> AsyncIterator[OpenAgain]:
    """Opens a tracker of the test's own address, as often as it is called; all are closed in the end."""
    address = kind.address(tmp_path)
    trackers: list[Tracker] = []

    async def opened() -> tuple[Tracker, Opened]:
        tracker = kind.make(address)
        trackers.append(tracker)
        return tracker, await tracker.open()

    yield opened
    for tracker in trackers:
        await tracker.close()


@pytest.fixture
async def tracker(open_again: OpenAgain) -> Tracker:
    """A new tracker, opened."""
    return (await open_again())[0]
