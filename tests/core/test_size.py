"""A million tasks cost a few bytes each: no object a task is made by submitting, releasing or repeating them."""

from __future__ import annotations

import gc
import sys
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager

from world import World, expanded, task

from daggyr_server.core.events import AttemptEnded
from daggyr_server.core.states import Outcome, Phase, State

MILLION = 1_000_000
THOUSAND = tuple(map(str, range(1_000)))


@contextmanager
def few_objects(most: int) -> Iterator[None]:
    """The block within leaves at most this many more objects of any type, whether the garbage collector knows them or not."""
    gc.collect()
    before = sys.getallocatedblocks()
    yield
    gc.collect()
    made = sys.getallocatedblocks() - before
    assert made <= most, f"{made:,} objects more"


def test_submitting_a_million_expansions_makes_no_object_a_task() -> None:
    world = World(checked=False)
    spec = {"t": expanded("A B", parameters={"A": THOUSAND, "B": THOUSAND}), "before": task("t")}
    tracemalloc.start()
    try:
        with few_objects(10_000):
            run_id = world.submit(spec)
        size, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    run = world.of(run_id)
    assert run.graph.size == MILLION + 3
    assert size < 12 * MILLION and peak < 40 * MILLION  # bytes
    world.host(cores=8)
    with few_objects(1_000):
        world.end(run_id, "before")
    assert run.counts[Phase.READY] + run.counts[Phase.ASSIGNED] == MILLION
    assert len(run.in_flight) == 8


def test_nothing_is_left_of_tasks_that_completed() -> None:
    world = World(checked=False)
    run_id = world.submit({"t": expanded("A B", parameters={"A": THOUSAND[:100], "B": THOUSAND})})
    run = world.of(run_id)
    with few_objects(1_000):
        world.host(cores=1_000)
        while run.in_flight:
            ended = [(run_id, number, flight.attempt) for number, flight in run.in_flight.items()]
            world.tell(*(AttemptEnded(*key, Outcome.SUCCEEDED, 1.0, None) for key in ended))
            for kept in (world.records, world.commands, world.sent, ended):
                kept.clear()
        world.tell()
    assert run.state is State.COMPLETED
    assert run.counts[Phase.COMPLETED] == 100_000 + 2


def test_what_is_asked_for_again_is_kept_as_ranges() -> None:
    world = World(checked=False)
    names = [f"t{index}" for index in range(50_000)]
    run_id = world.submit({"t": expanded("N", parameters={"N": names}), "before": task("t"), "other": task()})
    world.kill(run_id, "t")
    with few_objects(5_000):
        world.retry(run_id, "t")
        world.records.clear()
    world.host(cores=2)
    with few_objects(5_000):
        world.end(run_id, "before")
        world.records.clear()
    assert world.of(run_id).counts[Phase.READY] == 50_000 - 1


def test_plain_tasks_that_become_ready_side_by_side_are_kept_as_ranges() -> None:
    world = World(checked=False)
    count = 100_000
    spec = {"t": expanded("N", "after", parameters={"N": ["1", "2"]}), "after": task(*(f"c{index}" for index in range(count)))}
    run_id = world.submit({**spec, **{f"c{index}": task() for index in range(count)}})
    world.host(cores=1)
    for name in ("t.N:1", "t.N:2"):
        world.end(run_id, name)
    with few_objects(1_000):
        world.end(run_id, "after")
    assert world.of(run_id).counts[Phase.READY] == count - 1
