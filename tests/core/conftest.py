"""What most tests of the core start from. The fixture is a simulation: it starts no process and opens no file."""

from __future__ import annotations

import pytest
from world import World


@pytest.fixture(params=[False, True], ids=["", "rehearsed"])
def world(request: pytest.FixtureRequest) -> World:
    """One pool `main` with a host of eight cores. What people ask is done by the machine itself, and again to copies of runs."""
    world = World(rehearses=request.param)
    world.host(cores=8)
    return world
