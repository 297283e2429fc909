"""A hundred random cases: whatever people ask of runs, a server does and tells what the documents say. README.md has more."""

from __future__ import annotations

from support.deployment import Deployment

from model.played import World

CASES = range(1, 101)
STEPS = 10  # of each


def test_a_server_does_what_the_documents_say(deployment: Deployment) -> None:
    """The cases take turns on one server, which is killed and started again meanwhile."""
    world = World(deployment)
    try:
        differed = world.play(CASES, STEPS)
    finally:
        world.close()
    assert not differed, "\n".join(differed)
    assert world.restarts, "no case restarts the server"
