"""Every move of a phase is in a table of `states.py`. Another one raises, changes nothing, and tells the task's story."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import product

import pytest
from world import World, expanded, task

from daggyr_server.core.events import AttemptEnded, HostChanged
from daggyr_server.core.graph.faults import IllegalRunMove, IllegalTaskMove, IllegalTransition
from daggyr_server.core.graph.run import Run
from daggyr_server.core.states import HELD_BACK, REBUILT, RUN_TRANSITIONS, TRANSITIONS, Outcome, Phase, State

PAIRS = list(product(Phase, Phase))
Table = Mapping[Phase, frozenset[Phase]]


def seen(run: Run) -> tuple[object, ...]:
    """All that a move might have changed."""
    queues = [list(queue) for queue in run.queues]
    return bytes(run.phases), list(run.counts), list(run.attempts), dict(run.in_flight), list(run.waiting), queues, run.state


def put(run: Run, number: int, phase: Phase) -> None:
    """Say that a task is in a phase, whatever it was."""
    run.counts[run.phases[number]] -= 1
    run.counts[phase] += 1
    run.phases[number] = phase


@pytest.fixture
def world() -> World:
    world = World(checked=False)
    world.host(cores=8)
    return world


@pytest.mark.parametrize(("before", "after"), PAIRS)
@pytest.mark.parametrize(
    ("table", "mover"),
    [
        (TRANSITIONS, lambda run, phase: run.move(0, phase)),
        (HELD_BACK, lambda run, phase: run.hold(0, phase)),
        (REBUILT, lambda run, phase: run.put_back([0] * run.graph.size, {0: phase}, [])),
    ],
    ids=["life", "held back", "rebuilt"],
)
def test_a_move_is_made_if_the_table_has_it(
    world: World, table: Table, mover: Callable[[Run, Phase], None], before: Phase, after: Phase
) -> None:
    run = world.of(world.submit({"a": task("b"), "b": task()}))
    put(run, 0, before)
    known = seen(run)
    if after in table.get(before, ()):
        mover(run, after)
        assert run.phases[0] == after
        assert run.counts[after] >= 1
        assert sum(run.counts) == run.graph.size
    else:
        with pytest.raises(IllegalTaskMove) as caught:
            mover(run, after)
        assert (caught.value.before, caught.value.after) == (before, after)
        assert seen(run) == known


@pytest.mark.parametrize(("before", "after"), PAIRS)
def test_so_is_a_move_of_a_task_that_an_edit_took_away(world: World, before: Phase, after: Phase) -> None:
    run_id = world.submit({"a": task(), "b": task()})
    world.edit(run_id, {"b": task()})
    run = world.of(run_id)
    run.phases[0] = before
    counts = list(run.counts)
    if after in TRANSITIONS[before]:
        run.move_retired(0, after)
        assert run.phases[0] == after
    else:
        with pytest.raises(IllegalTaskMove):
            run.move_retired(0, after)
        assert run.phases[0] == before
    assert run.counts == counts  # it counts no more


@pytest.mark.parametrize("wrong", [phase for phase in Phase if phase is not Phase.READY])
def test_assigning_is_a_move_by_the_table(world: World, wrong: Phase) -> None:
    """All the tasks that are placed together move, or none does, and nothing is in flight of them."""
    run_id = world.submit({"first": task(), **{name: task() for name in "abc"}})
    run = world.of(run_id)
    sent = run.in_flight[0].sent
    for number in (1, 2, 3):
        del run.in_flight[number]
        put(run, number, Phase.READY)
    put(run, 3, wrong)
    known = seen(run)
    with pytest.raises(IllegalTransition):
        run.assign([1, 2, 3], sent)
    assert seen(run) == known
    with pytest.raises(IllegalTransition):
        run.assign([1, 2, 2], sent)
    assert seen(run) == known
    run.assign([1, 2], sent)
    assert [Phase(run.phases[number]) for number in (1, 2, 3)] == [Phase.ASSIGNED, Phase.ASSIGNED, wrong]


def test_a_range_moves_by_the_table(world: World) -> None:
    """All expansions of a head move, or none does."""
    run_id = world.submit({"a": task("t"), "t": expanded("P", parameters={"P": ["1", "2", "3"]})})
    run = world.of(run_id)
    first, beyond = run.graph.number_of("t.P:1"), run.graph.number_of("t.tail")
    assert first is not None and beyond is not None
    known = seen(run)
    for before, after in PAIRS:
        if before is not Phase.BLOCKED or after not in TRANSITIONS[before]:
            with pytest.raises(IllegalTransition):
                run._move_range(first, beyond, before, after)
    put(run, first + 1, Phase.ERRORED)
    with pytest.raises(IllegalTaskMove, match=r"t\.P:2 .* cannot go from ERRORED to READY"):
        run._move_range(first, beyond, Phase.BLOCKED, Phase.READY)
    put(run, first + 1, Phase.BLOCKED)
    assert seen(run) == known


@pytest.mark.parametrize(("before", "after"), list(product(State, State)))
def test_a_run_moves_by_its_table(world: World, before: State, after: State) -> None:
    run = world.of(world.submit({"a": task()}))
    run.state = before
    if after in RUN_TRANSITIONS[before]:
        run._become(after, world.wall)
        assert run.state is after
        return
    with pytest.raises(IllegalRunMove, match=f"run 1: it cannot go from {before.name} to {after.name}"):
        run._become(after, world.wall)
    assert run.state is before


def test_the_tables_tell_of_every_phase_and_state() -> None:
    assert TRANSITIONS.keys() == set(Phase)
    assert RUN_TRANSITIONS.keys() == set(State)
    for table in (TRANSITIONS, HELD_BACK, REBUILT):
        assert all(before not in after for before, after in table.items()), "staying is no move"


# -- the story that a fault tells -------------------------------------------------------------------------------------


def test_a_fault_tells_the_story_of_its_task(world: World) -> None:
    run_id = world.submit({"good": task(), "a": task("b", max_retries=3), "b": task()})
    world.end(run_id, "a", outcome=Outcome.FAILED)
    world.start(run_id, "a")
    put(world.of(run_id), 1, Phase.COMPLETED)
    good, bad = (AttemptEnded(*world.key(run_id, name), Outcome.FAILED, 1.0, "secret") for name in ("good", "a"))
    with pytest.raises(IllegalTaskMove) as caught:
        world.tell(good, bad)
    fault = caught.value
    assert (list(world.of(run_id).in_flight), world.of(run_id).failures) == ([1], {1: 1})  # neither ended nor counted
    assert (fault.run_id, fault.task_id, fault.number, fault.attempt) == (run_id, "a", 1, 2)
    assert (fault.before, fault.after) == (Phase.COMPLETED, Phase.READY)
    assert str(fault).splitlines() == [
        "task a (number 1) of run 1, attempt 2: it cannot go from COMPLETED to READY",
        "  parents that it waits for: 0",
        "  revision of the run: 1, edits: 0, tasks: 3, of these gone: 0",
        "  of the others are 1 BLOCKED, 1 COMPLETED, 1 ERRORED",
        "  attempt 2 of 1 is in flight on host h of pool main: it was assigned at 1000001000.000, "
        "started at 1000001000.000, and is to go on",
        "  retries used: 1, losses: 0, came back after it had begun: 0",
        "  the run is RUNNING; attempts in flight: 1",
        "  the machine was handling AttemptEnded(run_id=1, number=1, attempt=2, outcome=FAILED), at 1000001000.000",
        "  before that, in the same step, it recorded AttemptRecorded(run_id=1, number=0, attempt=1, outcome=FAILED, "
        "state=ERRORED, host=h)",
        "This is a fault of DaggyR and not of the run. Nothing of this step is stored or told to anybody: a coordinator that is "
        "started again goes on from what its tracker holds. Please report this whole text.",
    ]


def test_a_fault_tells_of_the_attempt_that_is_in_flight(world: World) -> None:
    run_id = world.submit({"a": task()})
    run = world.of(run_id)
    world.kill(run_id, "a")
    put(run, 0, Phase.COMPLETED)
    with pytest.raises(IllegalTransition) as caught:
        world.start(run_id, "a")
    assert (
        "attempt 1 of 0 is in flight on host h of pool main: it was assigned at 1000001000.000, has not started, and is stopping"
        in str(caught.value)
    )
    assert run.in_flight[0].start_time is None


def test_a_fault_while_placing_says_so(world: World) -> None:
    world.lose("h")
    run_id = world.submit({"a": task()})
    put(world.of(run_id), 0, Phase.KILLED)
    with pytest.raises(IllegalTransition, match="the machine was placing tasks or ending runs, at 1000"):
        world.tell(HostChanged(pool="main", host="h", name="h", resources={"cores": 1}, open=True))


def test_a_fault_tells_nothing_of_what_people_wrote(world: World) -> None:
    """Its text holds no document, command, environment, tag or result."""
    run_id = world.submit(
        {"a": task(details={"command": ["hush"], "environment": {"PASSWORD": "hush"}})}, tags={"who": "hush"}, parameters={}
    )
    put(world.of(run_id), 0, Phase.COMPLETED)
    with pytest.raises(IllegalTransition) as caught:
        world.tell(AttemptEnded(*world.key(run_id, "a"), Outcome.FAILED, 1.0, "hush"))
    assert "hush" not in str(caught.value)
