"""Names that an edit took away: nothing new begins under one, as long as an attempt of the old task is being ended.

An edit may remove a task whose attempt is still in flight, and the same edit or a later one may have another task of that name.
Two processes of one name would then run at a time. So the new task is held back: until the old attempt has ended it counts as
being in flight with that attempt, and then it is queued. A task that has ended waits for nothing, but will if it is queued again;
so `hold_back` is called whenever tasks come to a run, or tasks that have ended are queued again. Only the files of this folder
call what is here.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from daggyr_server.core.graph.graph import Graph
from daggyr_server.core.graph.in_flight import InFlight
from daggyr_server.core.states import ENDED, Phase


class Holding(Protocol):
    """What is needed of a run."""

    graph: Graph
    phases: bytearray
    in_flight: dict[int, InFlight]
    orphans: set[int]
    renumbered: dict[int, int]

    def put_in_flight(self, number: int, attempt: InFlight, /) -> None: ...
    def hold(self, number: int, phase: int, /) -> None: ...
    def move(self, number: int, phase: int, /) -> None: ...
    def forget_moved(self) -> None: ...


def hold_back(run: Holding) -> list[int]:
    """Hold back tasks whose name an attempt of a removed task still has. Returns the tasks that wait from now on."""
    held: list[int] = []
    for number in sorted(run.orphans):
        attempt = run.in_flight[number]
        task = run.graph.number_of(run.graph.task_id(attempt.number))
        if task is None or task in run.in_flight or run.graph.kind(task) or Phase(run.phases[task]) in ENDED:
            continue
        del run.in_flight[number]
        run.orphans.discard(number)
        attempt.held = True
        run.put_in_flight(task, attempt)
        run.hold(task, Phase.ASSIGNED if attempt.start_time is None else Phase.RUNNING)
        held.append(task)
    if held:
        run.forget_moved()
    return held


def let_go(run: Holding, numbers: Iterable[int]) -> None:
    """Those of `numbers` that only wait for an attempt of a removed task no longer do, because a person kills them."""
    for number in numbers:
        attempt = run.in_flight.get(number)
        if attempt is not None and attempt.held:
            del run.in_flight[number], run.renumbered[attempt.number]
            attempt.held = False
            run.put_in_flight(attempt.number, attempt)
            run.move(number, Phase.BLOCKED)
