"""Runs of many equal tasks, as the tests of placing use them: how to describe one, how its attempts go, and where they are.

It starts nothing: `World` plays the hosts. Functions that only one file of tests needs stand there.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from world import World, expanded

from daggyr_server.core.commands import StartAttempts
from daggyr_server.core.step import Step


def many(count: int, **fields: Any) -> dict[str, dict[str, Any]]:
    """The tasks of a run: one task `t` with this many expansions; `fields` apply to all of them."""
    return {"t": expanded("N", parameters={"N": [str(number) for number in range(count)]}, **fields)}


def placed(step: Step) -> list[tuple[int, str, int]]:
    """Return (run id, host, number of attempts) for each command to start attempts, in the order of the commands."""
    return [(c.run_id, c.host, len(c.numbers)) for c in step.commands if isinstance(c, StartAttempts)]


def in_flight(world: World, run_id: int) -> Counter[str]:
    """Count the run's attempts in flight, by host."""
    return Counter(flight.host for flight in world.of(run_id).in_flight.values())


def known_to_last(world: World, run_id: int, seconds: float) -> None:
    """Let the machine believe that the run's attempts have taken this long so far."""
    for queue in world.of(run_id).queues:
        queue.lasted(seconds)


def end_first(world: World, run_id: int, count: int = 1, seconds: float = 1.0) -> Step:
    """Let the `count` attempts of the run that are in flight for longest succeed, after `seconds` each."""
    names = [world.of(run_id).graph.task_id(number) for number in list(world.of(run_id).in_flight)[:count]]
    return world.end(run_id, *names, seconds=seconds)
