"""What most tests of the core start from. The fixture is a simulation: it starts no process and opens no file."""

from __future__ import annotations

import pytest
from world import World


@pytest.fixture
def world() -> World:
    """One pool `main` with a host of eight cores."""
    world = World()
    world.host(cores=8)
    return world
