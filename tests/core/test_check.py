"""`check` finds what is broken: each rule of it is broken once, in a world in which all was well."""

from __future__ import annotations

from array import array
from collections.abc import Callable

import pytest
from world import World, expanded, task

from daggyr_server.core.check import BrokenInvariant, check
from daggyr_server.core.graph.run import Run
from daggyr_server.core.states import MAX_LOSSES, Outcome, Phase, State


def busy() -> tuple[World, Run]:
    """A world with a run of which tasks are in all phases, another that has ended, and a third that waits."""
    world = World()
    world.host("h", cores=2)
    run_id = world.submit(
        {
            "done": task("t"),
            "late": task(max_retries=1, retry_delay=60),
            "t": expanded("P", "z", parameters={"P": ["1", "2", "3", "4"]}),
            "z": task(),
            "bad": task(),
        }
    )
    for name in ("done", "late", "bad"):
        while world.phase(run_id, name) is not Phase.ASSIGNED:
            world.tell()
        world.end(run_id, name, outcome=Outcome.SUCCEEDED if name == "done" else Outcome.FAILED)
    world.start(run_id, "t.P:1")
    world.kill(world.submit({"x": task()}))
    world.submit({"y": task()})
    check(world.machine)
    return world, world.of(run_id)


def move(run: Run, name: str, phase: Phase) -> None:
    """Say that a task is in a phase, and count it there."""
    number = run.graph.number_of(name)
    assert number is not None
    run.counts[run.phases[number]] -= 1
    run.counts[phase] += 1
    run.phases[number] = phase


def flying(run: Run) -> list[int]:
    return sorted(run.in_flight)


BREAKS: dict[str, Callable[[World, Run], object]] = {
    "a run under another number": lambda w, r: w.machine.runs.__setitem__(9, r),
    "a request that leads nowhere": lambda w, r: w.machine.requests.__setitem__("x", 77),
    "a run that no request leads to": lambda w, r: w.machine.requests.clear(),
    "arrays of different lengths": lambda w, r: r.attempts.append(0),
    "a count": lambda w, r: r.counts.__setitem__(0, 99),
    "structural tasks": lambda w, r: setattr(r, "structural", 7),
    "completed structural tasks": lambda w, r: setattr(r, "structural_completed", 2),
    "what a task waits for": lambda w, r: r.waiting.__setitem__(r.graph.size - 1, 5),
    "a ready task with a parent that did not complete": lambda w, r: move(r, "done", Phase.ERRORED),
    "a blocked task that waits for nobody": lambda w, r: move(r, "bad", Phase.BLOCKED),
    "a head that is not where its parents are": lambda w, r: move(r, "t", Phase.BLOCKED),
    "a running task without an attempt": lambda w, r: move(r, "bad", Phase.RUNNING),
    "an attempt of a task that does not run": lambda w, r: r.in_flight.pop(flying(r)[0]),
    "the number of an attempt": lambda w, r: setattr(r.in_flight[flying(r)[0]], "attempt", 5),
    "the number of a task": lambda w, r: setattr(r.in_flight[flying(r)[0]], "number", 0),
    "an attempt that an edit ended and that was not told": lambda w, r: setattr(r.in_flight[flying(r)[0]], "void", True),
    "an attempt that is killed though it counts": lambda w, r: setattr(r.in_flight[flying(r)[0]], "killed", True),
    "an attempt in another queue": lambda w, r: setattr(r.in_flight[flying(r)[0]].sent, "queue", r.queues[1]),
    "an attempt in another pool": lambda w, r: setattr(r.in_flight[flying(r)[0]].sent, "pool", "moon"),
    "an attempt on a host that is gone": lambda w, r: w.machine.pools["main"].hosts.pop("h"),
    "an attempt without weight": lambda w, r: setattr(r.in_flight[flying(r)[0]].sent, "weight", 0),
    "a killed run of which attempts were not told": lambda w, r: setattr(r, "killing", True),
    "an orphan that is none": lambda w, r: r.orphans.add(0),
    "a task that goes on after too many losses": lambda w, r: r.losses.__setitem__(flying(r)[0], MAX_LOSSES + 1),
    "a number that leads nowhere": lambda w, r: r.renumbered.__setitem__(3, 77),
    "unstarted attempts": lambda w, r: setattr(r.queues[0], "unstarted", 9),
    "a queue of no policy": lambda w, r: r.queues.pop(),
    "priorities": lambda w, r: setattr(r, "ranked", True),
    "a queue of another run": lambda w, r: setattr(r.queues[0], "run_id", 2),
    "the order in a queue": lambda w, r: [r.queues[0].push(50, 51, 9), r.queues[0].push(60, 61, 1)],
    "a ready task that stands in no queue": lambda w, r: r.queues[0].take(1),
    "a queue that is not counted": lambda w, r: setattr(r.queues[0], "offered", None),
    "a delay that was forgotten": lambda w, r: r.delayed.clear(),
    "a time to wake that was forgotten": lambda w, r: w.machine.alarms.clear(),
    "a run that has ended too early": lambda w, r: setattr(r, "state", State.COMPLETED),
    "a run that runs though nothing has started": lambda w, r: setattr(r, "start_time", None),
    "a run that stopped and goes on": lambda w, r: setattr(r, "stop_time", 5.0),
    "a change that was not told": lambda w, r: r.changed.append(1),
    "a move that was not told": lambda w, r: r.moves.append((State.QUEUED, 1.0)),
    "a run that ended otherwise": lambda w, r: setattr(w.machine.runs[2], "state", State.ERRORED),
    "the tally of runs": lambda w, r: w.machine.tally.runs.__setitem__(State.RUNNING, 9),
    "the tally of tasks": lambda w, r: w.machine.tally.tasks.__setitem__(State.QUEUED, 9),
    "a share that is gone": lambda w, r: w.machine.pools["main"].shares.by_run.pop(r.run_id),
    "a share of another run": lambda w, r: setattr(w.machine.pools["main"].shares.by_run[r.run_id], "run_id", 3),
    "what a share counts in flight": lambda w, r: setattr(w.machine.pools["main"].shares.by_run[r.run_id], "in_flight", 9),
    "what a share is charged": lambda w, r: setattr(w.machine.pools["main"].shares.by_run[r.run_id], "usage", 9),
    "a run that is not in line": lambda w, r: [
        getattr(w.machine.pools["main"].shares, name).clear() for name in ("line", "moved")
    ],
    "what is ready in a pool": lambda w, r: setattr(w.machine.pools["main"].shares.count, "ready", 9),
    "what is wanted in a pool": lambda w, r: w.machine.pools["main"].shares.wanted.clear(),
    "a run that ranks and has no share": lambda w, r: w.machine.pools["main"].shares.ranked.__setitem__(
        77, w.machine.pools["main"].shares.by_run[r.run_id]
    ),
    "what a host counts in flight": lambda w, r: setattr(w.machine.pools["main"].hosts["h"], "in_flight", 1),
    "what a host is charged": lambda w, r: setattr(w.machine.pools["main"].hosts["h"].uses["cores"], "units", 1),
    "a host that takes attempts while it is drained": lambda w, r: setattr(w.machine.pools["main"].hosts["h"], "draining", True),
    "a host with more than it has": lambda w, r: w.machine.pools["main"].hosts["h"].resources.__setitem__("cores", 1),
    "a host that is kept and nobody knows": lambda w, r: setattr(w.machine.pools["main"].hosts["h"], "reserved", r.queues[0]),
}  # fmt: skip


@pytest.mark.parametrize("broken", BREAKS)
def test_a_broken_rule_is_found(broken: str) -> None:
    world, run = busy()
    BREAKS[broken](world, run)
    with pytest.raises(BrokenInvariant):
        check(world.machine)


def test_check_changes_nothing() -> None:
    world, run = busy()
    known = (bytes(run.phases), array("I", run.waiting), list(run.counts), dict(run.in_flight), [list(q) for q in run.queues])
    check(world.machine)
    assert known == (bytes(run.phases), run.waiting, run.counts, run.in_flight, [list(q) for q in run.queues])
