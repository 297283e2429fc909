"""What is durable of a world's runs, and the machine that a coordinator makes of it when it starts again.

The records are folded by the code that all trackers share; only graphs come from elsewhere, because expanding documents again is
the spec's matter: the test keeps the additions.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from daggyr_server.core.events import RunRestored
from daggyr_server.core.graph.graph import Addition, Edit, Graph, Replaced
from daggyr_server.core.graph.in_flight import InFlight
from daggyr_server.core.graph.restore import restored as made_again
from daggyr_server.core.graph.run import Run
from daggyr_server.core.moment import Moment
from daggyr_server.core.records import (
    AttemptRecorded,
    AttemptsAssigned,
    Record,
    RunAdded,
    RunEdited,
    RunKillAsked,
    RunMoved,
    TasksGenerated,
    TasksMoved,
    TasksStopped,
)
from daggyr_server.core.states import ENDED, Phase, State
from daggyr_server.core.stored import RunRow
from daggyr_server.driver.replaced import decoded, encoded
from daggyr_server.trackers.task_rows import Assigned, Folding, adopted

Grown = Mapping[tuple[int, int], Addition | Edit]  # what a run was extended by, by its id and revision


def restored(records: Iterable[Record], grown: Grown, now: Moment) -> list[RunRestored]:
    """All runs that the records tell of."""
    by_run: dict[int, list[Record]] = {}
    for record in records:
        by_run.setdefault(record.run_id, []).append(record)
    return [_restored(run_id, of_run, grown, now) for run_id, of_run in by_run.items()]


def _restored(run_id: int, records: Sequence[Record], grown: Grown, now: Moment) -> RunRestored:
    added = records[0]
    assert isinstance(added, RunAdded)
    state, killing, revision = State.QUEUED, False, 1
    tags, pool = added.tags, added.pool
    printed: dict[int, int] = {}
    stopped: Sequence[int] = ()
    edits: list[Edit] = []
    start_time: float | None = None
    stop_time: float | None = None
    running_time: float | None = None
    ran_seconds = 0.0
    folding, sent, ended = Folding(), [], []
    for record in records:
        if isinstance(record, RunMoved):
            state, ran_seconds = record.state, record.ran_seconds
            running_time = record.time if state is State.RUNNING else None
            if state is State.QUEUED:
                stop_time, killing = None, False
            elif state is State.RUNNING:
                start_time = record.time if start_time is None else start_time
            else:
                stop_time = record.time
        elif isinstance(record, RunKillAsked):
            killing = True
        elif isinstance(record, TasksGenerated):
            revision = record.revision
            addition = grown[run_id, revision]
            assert isinstance(addition, Addition)
            if addition.segments:
                printed[revision] = _newest(record.number, edits)
        elif isinstance(record, RunEdited):
            revision, tags, pool = record.revision, record.tags, record.pool
            edit = grown[run_id, revision]
            assert isinstance(edit, Edit)
            edits.append(edit)
            assert edit.kept == record.kept
            printed = edit.printed_after(printed)
        elif isinstance(record, AttemptsAssigned):
            folding.assigned(record.numbers, record.attempts)
            sent.append(Assigned(record.host, record.host_name, record.time, record.numbers, record.attempts, 0))
        elif isinstance(record, TasksStopped):
            stopped = record.numbers
        elif isinstance(record, TasksMoved):
            folding.moved(int(record.state), record.numbers, record.attempts)
        elif isinstance(record, AttemptRecorded):
            ended.append((record.number, record.attempt, int(record.outcome), int(record.state)))
    folding.ended(sorted(ended))
    tasks, in_flight, void = folding.rows()
    run, ending = made_again(
        RunRow(
            *(run_id, added.request_id, tags, pool, state, added.submit_time, start_time, stop_time, killing, {}),
            ran_seconds=ran_seconds,
            running_time=running_time,
        ),
        tasks,
        adopted(in_flight, void, sent),
        stopped=stopped,
        parameters={},
        growths=_shortened([grown[run_id, number] for number in range(1, revision + 1)]),
        revision=revision,
        printed=printed,
        now=now,
    )
    return RunRestored(request_id=added.request_id, run=run, ending=ending)


def _shortened(growths: Sequence[Addition | Edit]) -> list[Addition | Edit | Replaced]:
    """The same graph with what a tracker keeps of the specifications that edits replaced. Every other time, all is left whole."""
    last = max((index for index, growth in enumerate(growths) if isinstance(growth, Edit)), default=0)
    if not last or len(growths) % 2:
        return list(growths)
    graph, found = Graph(), list[Addition | Edit | Replaced]()
    for index, growth in enumerate(growths):
        additions = growth.additions if isinstance(growth, Edit) else [growth]
        if isinstance(growth, Edit):
            found.append(decoded(encoded(graph.frozen(), growth.carry), graph.live))
            graph.retire(growth.carry)
        for addition in additions:
            graph.extend(addition)
            if index >= last:
                found.append(addition)
    return found


def _newest(number: int, edits: Sequence[Edit]) -> int:
    """The number by now of a generator whose tasks have just come."""
    for edit in edits:
        over = edit.carry.forward(number)
        number = over[0] if over is not None else number
    return number


def assert_as_before(run: Run, live: Run) -> None:
    """All that matters later is the same in `run`, which a new machine made of the records, and in `live`, which the old one has.

    Nobody knows yet whether attempts in flight have started, and how long retries have waited.
    """
    first = live.graph.live
    assert run.graph.live == first
    assert [_known(phase) for phase in run.phases[first:]] == [_known(phase) for phase in live.phases[first:]]
    assert run.stopped == live.stopped
    assert list(run.attempts[first:]) == list(live.attempts[first:])
    assert {number: _told(flight) for number, flight in run.in_flight.items()} == {
        number: _told(flight) for number, flight in live.in_flight.items()
    }
    assert run.renumbered == live.renumbered
    assert run.orphans == live.orphans
    asked = {number for number, flight in live.in_flight.items() if flight.stopping or run.killing}
    assert {number for number, flight in run.in_flight.items() if flight.stopping} == asked
    for used in ("failures", "losses"):
        assert _left(run, used) == _left(live, used), used
    for name in ("state", "killing", "revision", "start_time", "stop_time", "submit_time", "tags", "pool", "printed"):
        assert getattr(run, name) == getattr(live, name), name


def _told(flight: InFlight) -> tuple[object, ...]:
    return flight.number, flight.attempt, flight.pool, flight.host, flight.void, flight.held, flight.killed


def _known(phase: int) -> Phase:
    """The phase as far as the records tell it."""
    return {Phase.RUNNING: Phase.ASSIGNED, Phase.DELAYED: Phase.READY}.get(Phase(phase), Phase(phase))


def _left(run: Run, used: str) -> dict[int, int]:
    """The retries or losses that tasks have used up which may be attempted again."""
    return {number: count for number, count in getattr(run, used).items() if run.phases[number] not in ENDED}
