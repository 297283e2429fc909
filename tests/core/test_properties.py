"""Whatever is told and asked, in whatever order: the invariants hold after every step, and in the end all work is done once.

Hypothesis plays executors, people and the clock. After every step `World.tell` calls `check`.
"""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from replay import assert_same, replay
from world import World, expanded, task

from daggyr_server.core.commands import Key
from daggyr_server.core.events import AttemptEnded, AttemptStarted, Event, MarkAsked
from daggyr_server.core.graph.ready import TaskKind
from daggyr_server.core.states import ENDED, Outcome, Phase, State
from daggyr_server.core.step import Refusal

HOSTS = ("h1", "h2", "h3")
VALUES = ("1", "2", "3")
KINDS = [TaskKind((("cores", 1),), 0), TaskKind((("cores", 2),), 0), TaskKind((("cores", 1), ("gpu", 1)), 0)]


@st.composite
def specifications(draw: st.DrawFn, prefix: str = "") -> dict[str, dict[str, Any]]:
    """A few tasks with edges from earlier to later ones; some are multiplied, some of those matched, some generate.

    Two of them have some tasks in common, which often differ in what they do or in their values.
    """
    values = draw(st.sampled_from([VALUES[:2], VALUES[:2], VALUES[:1], VALUES[1:], VALUES[::-1]]))
    count = draw(st.integers(1, 5))
    names = [f"{prefix}{letter}" for letter in "abcde"[:count]]
    multiplied = {name for name in names if draw(st.booleans())}
    found: dict[str, dict[str, Any]] = {}
    for index, name in enumerate(names):
        earlier = draw(st.lists(st.sampled_from(names[:index]), unique=True)) if index else []
        matched = {parent for parent in earlier if parent in multiplied and name in multiplied and draw(st.booleans())}
        fields = {
            "parents": [{"task": parent, "match": ["M"]} if parent in matched else parent for parent in earlier],
            "max_retries": draw(st.integers(0, 2)),
            "retry_delay": draw(st.sampled_from([0, 0, 1, 3])),
            "priority": draw(st.sampled_from([0, 0, 5])),
            "is_generator": draw(st.sampled_from([False, False, True])),
            "resources": {"cores": draw(st.integers(1, 2)), **({"gpu": 1} if draw(st.booleans()) else {})},
        }
        # All expansions of a matched child's value must be among its parent's: all have the same.
        words = ["echo", *(["M"] if name in multiplied else []), *(["again"] if draw(st.booleans()) else [])]
        if name in multiplied:
            fields["parameters"] = {"M": values}
        found[name] = task(details={"command": words}, **fields)
    return found


class Anything(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.world = World()
        self.generated = 0

    def flights(self) -> list[Key]:
        return [
            (run.run_id, flight.number, flight.attempt)
            for run in self.world.machine.runs.values()
            for flight in run.in_flight.values()
        ]

    def succeeded(self, key: Key, seconds: float | None) -> None:
        """An attempt succeeds; a generator's has printed one more task, or two."""
        run = self.world.of(key[0])
        number = run.task_of(key[1])
        if not run.graph.policy(key[1]).is_generator or not run.counts_for(number, run.in_flight[number]):
            self.world.tell(AttemptEnded(*key, Outcome.SUCCEEDED, seconds, None))
            return
        self.generated += 1
        task_id = run.graph.task_id(number)
        name = f"new-{task_id}"  # when it has to generate again, the same
        tasks = (
            {name: task()}
            if self.generated % 2
            else {name: expanded("M", f"{name}x", parameters={"M": VALUES}), f"{name}x": task()}
        )
        self.world.generate(key[0], task_id, tasks)

    @initialize(spec=specifications(), rehearses=st.booleans())
    def begin(self, spec: dict[str, dict[str, Any]], rehearses: bool) -> None:
        self.world.rehearses = rehearses
        self.world.submit(spec)

    @precondition(lambda self: len(self.world.machine.runs) < 3)
    @rule(spec=specifications(), request_id=st.sampled_from(["one", "two"]))
    def submit(self, spec: dict[str, dict[str, Any]], request_id: str) -> None:
        self.world.submit(spec, request_id=request_id)

    @rule(
        name=st.sampled_from(HOSTS),
        cores=st.integers(0, 4),
        gpu=st.integers(0, 2),
        ahead=st.booleans(),
        state=st.sampled_from(["open", "open", "open", "paused", "draining"]),
        limits=st.dictionaries(st.sampled_from(KINDS), st.integers(0, 2), max_size=2),
    )
    def change_host(self, name: str, cores: int, gpu: int, ahead: bool, state: str, limits: dict[TaskKind, int]) -> None:
        known = self.world.hosts.get(name)
        self.world.host(
            name,
            cores=cores,
            resources={"gpu": gpu},
            ahead=known.ahead if known is not None else ahead,
            open=state == "open",
            draining=state == "draining",
            limits=limits,
        )

    @precondition(lambda self: self.world.hosts)
    @rule(data=st.data())
    def lose_host(self, data: st.DataObject) -> None:
        self.world.lose(data.draw(st.sampled_from(sorted(self.world.hosts))))

    @precondition(lambda self: self.flights())
    @rule(data=st.data())
    def report(self, data: st.DataObject) -> None:
        """A batch of what hosts tell of attempts in flight, some of it twice."""
        events: list[Event] = []
        for key in data.draw(st.lists(st.sampled_from(self.flights()), min_size=1, max_size=6)):
            outcome = data.draw(st.sampled_from([None, *Outcome]))
            seconds = data.draw(st.sampled_from([None, 0.0, 0.01, 0.5, 60.0]))
            if outcome is None:
                events.append(AttemptStarted(*key, self.world.wall))
            elif outcome is Outcome.SUCCEEDED:
                self.world.tell(*events)
                events = []
                if key in self.flights():
                    self.succeeded(key, seconds)
            else:
                events.append(AttemptEnded(*key, outcome, seconds, None))
        self.world.tell(*events)

    @rule(data=st.data(), outcome=st.sampled_from(Outcome))
    def report_of_something_else(self, data: st.DataObject, outcome: Outcome) -> None:
        """Late, double and foreign reports change nothing."""
        keys = sorted(set(self.world.sent) - set(self.flights()))
        foreign = st.tuples(st.integers(0, 4), st.integers(0, 9), st.integers(0, 9)).filter(lambda key: key not in self.flights())
        key = data.draw(st.one_of(foreign, st.sampled_from(keys)) if keys else foreign)
        step = self.world.tell(AttemptStarted(*key, self.world.wall), AttemptEnded(*key, outcome, 1.0, None))
        assert not step.records and not step.commands and not step.changed

    @rule(data=st.data(), whole=st.sampled_from([False, False, False, True]), anything=st.sampled_from([False, False, True]))
    def kill(self, data: st.DataObject, whole: bool, anything: bool) -> None:
        run_id = self.run_id(data, ended=False)
        self.world.kill(run_id, *([] if whole else self.names(data, run_id, ended=False, anything=anything)))

    @rule(
        data=st.data(),
        whole=st.booleans(),
        downstream=st.booleans(),
        everything=st.booleans(),
        anything=st.sampled_from([False, False, True]),
    )
    def retry(self, data: st.DataObject, whole: bool, downstream: bool, everything: bool, anything: bool) -> None:
        run_id = self.run_id(data, ended=whole or everything)
        names = [] if whole else self.names(data, run_id, ended=True, anything=anything)
        self.world.retry(run_id, *names, downstream=downstream, everything=everything)

    @rule(data=st.data(), completed=st.booleans(), everything=st.booleans(), ended=st.booleans())
    def mark(self, data: st.DataObject, completed: bool, everything: bool, ended: bool) -> None:
        run_id = self.run_id(data, ended=ended)
        names = self.names(data, run_id, ended=not completed, anything=True)
        graph = self.world.of(run_id).graph
        numbers = tuple(number for number in self.world.numbers(run_id, names) or () if not graph.kind(number))
        if numbers:  # people cannot name heads and tails
            self.world.ask(
                lambda ticket: MarkAsked(
                    ticket=ticket, run_id=run_id, numbers=numbers, completed=completed, everything=everything
                )
            )

    @rule(
        data=st.data(),
        spec=specifications(),
        downstream=st.booleans(),
        everything=st.booleans(),
        ended=st.booleans(),
        late=st.sampled_from([0, 0, 0, 1]),
    )
    def edit(
        self, data: st.DataObject, spec: dict[str, dict[str, Any]], downstream: bool, everything: bool, ended: bool, late: int
    ) -> None:
        """What is unchanged keeps its state, whatever it is. A person who looked at an older specification is refused."""
        run_id = self.run_id(data, ended=ended)
        run = self.world.of(run_id)
        before = run.graph
        phases = {number: run.phases[number] for number in range(before.live, before.size)}
        edits = len(before.edits)
        answer = self.world.edit(run_id, spec, downstream=downstream, everything=everything, edits=edits - late)
        assert answer == edits + 1 or (isinstance(answer, Refusal) and (late or run.killing))
        if answer == edits + 1 and not downstream:
            for new, old, count, same in before.edits[-1][1]:
                for offset in range(count if same else 0):
                    if Phase(phases[old + offset]) in ENDED:
                        assert run.phases[new + offset] == phases[old + offset]

    def run_id(self, data: st.DataObject, *, ended: bool) -> int:
        """The id of a run of which something can be asked, if there is one."""
        runs = self.world.machine.runs
        fitting = [run_id for run_id, run in runs.items() if run.has_ended is ended]
        return data.draw(st.sampled_from(fitting or sorted(runs)))

    def names(self, data: st.DataObject, run_id: int, *, ended: bool, anything: bool) -> list[str]:
        """The names of tasks of which something can be asked, or of any tasks."""
        phases = self.world.phases(run_id)
        fitting = [name for name, phase in phases.items() if (phase in ENDED) is ended]
        return data.draw(
            st.lists(st.sampled_from(sorted(phases) if anything or not fitting else fitting), min_size=1, max_size=3)
        )

    @rule(seconds=st.sampled_from([0.05, 0.3, 1.0, 40.0]))
    def wait(self, seconds: float) -> None:
        self.world.wait(seconds)

    def teardown(self) -> None:
        """Let all that is there succeed, ask again for what has not completed, and look at what was done."""
        self.assert_rebuilt()
        self.world.host("big", cores=16, resources={"gpu": 16})
        for _ in range(2):
            self.drain()
            for run_id, run in self.world.machine.runs.items():
                assert run.has_ended, f"run {run_id} is left {run.state.name}"
                if run.state is not State.COMPLETED:
                    assert self.world.retry(run_id) is None
        self.drain()
        assert all(run.state is State.COMPLETED for run in self.world.machine.runs.values())
        assert not any(pool.shares.by_run for pool in self.world.machine.pools.values())
        self.assert_rebuilt()

    def drain(self) -> None:
        for _ in range(1_000):
            flights = self.flights()
            for key in flights:
                if key in self.flights():
                    self.succeeded(key, 1.0)
            if not flights:
                if not any(run.delayed for run in self.world.machine.runs.values()):
                    return
                self.world.wait(10)
        pytest.fail("it never ends")

    def assert_rebuilt(self) -> None:
        rebuilt = replay(self.world.records, self.world.edits)
        assert rebuilt.keys() == self.world.machine.runs.keys()
        for run_id, run in self.world.machine.runs.items():
            assert_same(rebuilt[run_id], run)


TestAnything = Anything.TestCase
TestAnything.settings = settings(
    max_examples=60,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
