"""A driver by itself, whose clocks stand still: for tests of this folder that start no server.

The test starts it, with the executors that it wants, and closes it.
"""

from __future__ import annotations

from daggyr_server.core.machine import Machine
from daggyr_server.core.moment import Moment
from daggyr_server.driver.changes import Changes
from daggyr_server.driver.driver import Driver
from daggyr_server.driver.generators import Generators
from daggyr_server.trackers.base import Tracker
from daggyr_server.trackers.memory.tracker import MemoryTracker

NOW = Moment(1_000.0, 1_000.0)


def still_driver(
    *pools: str, tracker: Tracker | None = None, generators: Generators | None = None, durable: bool = False, life: int = 1
) -> Driver:
    """A driver with a machine of these pools. Without a tracker it has one in memory."""
    return Driver(
        Machine(pools),
        tracker or MemoryTracker("memory"),
        Changes(1),
        generators or Generators({}),
        lambda: NOW,
        durable=durable,
        life=life,
    )
