"""The machine, a clock, and hosts that obey its commands: what the core's tests drive.

`World.tell` puts events into the machine, checks all invariants and takes note of the step's commands as an executor would; tests
say how attempts go, or let `World.run` do it on the simulated clock. Every record and command is kept. Tasks go by their names.
"""

from __future__ import annotations

import heapq
import json
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from daggyr_server.core.check import check
from daggyr_server.core.commands import Key, RecallAttempts, StartAttempts, StopAttempts
from daggyr_server.core.events import (
    AttemptEnded,
    AttemptStarted,
    EditAsked,
    Event,
    HostChanged,
    HostGone,
    KillAsked,
    MarkAsked,
    RetryAsked,
    RunSubmitted,
)
from daggyr_server.core.graph.graph import Addition, Edit
from daggyr_server.core.graph.ready import TaskKind
from daggyr_server.core.graph.run import Run
from daggyr_server.core.machine import Machine
from daggyr_server.core.moment import Moment
from daggyr_server.core.placing.host import Needs
from daggyr_server.core.records import Record, RunEdited, RunMoved, TasksGenerated
from daggyr_server.core.rehearsal import Rehearsal
from daggyr_server.core.states import Outcome, Phase, State
from daggyr_server.core.step import Refusal, Step
from daggyr_server.driver.edit_plan import RunSnapshot, planned
from daggyr_server.spec import Printed, SpecificationError, decode_json, expand, expand_generated

Tasks = Mapping[str, Mapping[str, Any]]


def task(*children: str, details: Mapping[str, Any] | None = None, **fields: Any) -> dict[str, Any]:
    """A task of a specification; `resources` may be given beside the other fields."""
    inside = {"command": ["true"], **(details or {})}
    for name in ("resources", "environment"):
        if name in fields:
            inside[name] = fields.pop(name)
    return {"details": inside, "children": list(children), **fields}


def expanded(parameter: str, *children: str, **fields: Any) -> dict[str, Any]:
    """A task whose command holds `parameter`."""
    return task(*children, details={"command": ["echo", parameter]}, **fields)


@dataclass
class SimulatedHost:
    """A host that starts attempts in the order in which they came, as far as its resources allow."""

    resources: dict[str, int]
    ahead: bool
    waiting: deque[Key] = field(default_factory=deque)
    running: set[Key] = field(default_factory=set)
    used: Counter[str] = field(default_factory=Counter)

    def fits(self, needs: Needs) -> bool:
        return all(self.used[name] + units <= self.resources.get(name, 0) for name, units in needs)

    def begin(self, key: Key, needs: Needs) -> None:
        self.running.add(key)
        for name, units in needs:
            self.used[name] += units

    def finish(self, key: Key, needs: Needs) -> None:
        self.running.remove(key)
        for name, units in needs:
            self.used[name] -= units


class World:
    def __init__(self, *pools: str, checked: bool = True, rehearses: bool = False) -> None:
        """With `rehearses`, what people ask is done to a copy of the run, where that is possible."""
        self.machine = Machine(pools or ("main",))
        self.now = 1_000.0  # by the steady clock
        self.ahead = 1_000_000_000.0  # seconds that the wall clock is ahead of it; tests let that jump
        self.due: float | None = None
        self.records: list[Record] = []
        self.commands: list[StartAttempts | StopAttempts | RecallAttempts] = []
        self.sent: dict[Key, str] = {}  # every attempt that was ever sent, and where
        self.hosts: dict[str, SimulatedHost] = {}
        self.shrunk: set[str] = set()
        self.lasts: Callable[[Key], float] = lambda key: 1.0  # seconds that an attempt takes in `run`
        self.ends: list[tuple[float, int, Key]] = []
        self.checked = checked
        self.printed: dict[tuple[int, int], bytes] = {}  # what generators printed, by run and revision
        self.edits: dict[tuple[int, int], Edit] = {}  # by run and revision
        self.rehearses = rehearses
        self._tickets = 0

    @property
    def moment(self) -> Moment:
        """Now, by both clocks."""
        return Moment(self.now, self.wall)

    @property
    def wall(self) -> float:
        return self.now + self.ahead

    # -- events in, commands out --------------------------------------------------------------------------------------

    def tell(self, *events: Event) -> Step:
        """Let the machine make a step. All invariants are checked, and that no attempt is ever sent twice."""
        step = self.machine.handle(self.moment, events)
        if self.checked:
            check(self.machine, self.shrunk)
        self.records += step.records
        self.commands += step.commands
        self.due = step.due
        assert self.due is None or self.due > self.now, "the machine asks to be called again at once"
        for command in step.commands:
            if isinstance(command, StartAttempts):
                for number, attempt in zip(command.numbers, command.attempts, strict=True):
                    key = (command.run_id, number, attempt)
                    assert key not in self.sent, f"{key} is sent a second time"
                    self.sent[key] = command.host
        return step

    def wait(self, seconds: float) -> Step:
        """Let time pass; the machine is called whenever it asked for that."""
        until = self.now + seconds
        while self.due is not None and self.due <= until:
            self.now = self.due
            self.tell()
        self.now = until
        return self.tell()

    def host(
        self,
        name: str = "h",
        *,
        pool: str = "main",
        ahead: bool = False,
        open: bool = True,
        draining: bool = False,
        resources: Mapping[str, int] | None = None,
        cores: int = 1,
        limits: Mapping[TaskKind, int] | None = None,
    ) -> Step:
        """A host comes, or changes. `limits` says of which kinds it takes how many more."""
        has = {"cores": cores, **(resources or {})}
        known = self.hosts.get(name)
        if known is None:
            self.hosts[name] = SimulatedHost(has, ahead)
        else:
            if any(has.get(resource, 0) < units for resource, units in known.resources.items()):
                self.shrunk.add(name)
            known.resources, known.ahead = has, ahead
        told = {kind: (room, "the scheduler says no") for kind, room in (limits or {}).items()}
        return self.tell(
            HostChanged(pool=pool, host=name, name=name, resources=has, open=open, ahead=ahead, draining=draining, limits=told)
        )

    def lose(self, name: str, *, pool: str = "main") -> Step:
        """A host goes for good."""
        del self.hosts[name]
        self.ends = [end for end in self.ends if self.sent[end[2]] != name]
        heapq.heapify(self.ends)
        return self.tell(HostGone(pool=pool, host=name, result="its host went away"))

    def submit(self, tasks: Tasks, *, request_id: str | None = None, pool: str = "main", **fields: Any) -> int:
        """Submit a run; returns its id."""
        document = json.dumps({"tasks": tasks, **fields}).encode()
        return self.submit_addition(expand(decode_json(document), default_pool=pool), request_id=request_id, pool=pool, **fields)

    def submit_addition(self, addition: Addition, *, request_id: str | None = None, pool: str = "main", **fields: Any) -> int:
        answer = self.ask(
            lambda ticket: RunSubmitted(
                ticket=ticket,
                request_id=f"request {ticket}" if request_id is None else request_id,
                tags=fields.get("tags", {}),
                pool=pool,
                parameters={name: tuple(values) for name, values in fields.get("parameters", {}).items()},
                addition=addition,
                document=b"",
            )
        )
        assert isinstance(answer, int), answer
        return answer

    def ask(self, event: Callable[[int], Event]) -> int | Refusal | None:
        """Put a question to the machine under a new ticket; returns the answer."""
        self._tickets += 1
        asked = event(self._tickets)
        if self.rehearses and isinstance(asked, KillAsked | RetryAsked | MarkAsked | EditAsked):
            run = self.machine.runs.get(asked.run_id)
            if run is not None and not run.in_flight:
                asked = Rehearsal(run, self.machine.pools).carried_out(asked, self.moment)
        return self.tell(asked).answers[self._tickets]

    def kill(self, run_id: int, *names: str) -> Refusal | None:
        numbers = self.numbers(run_id, names)
        answer = self.ask(lambda ticket: KillAsked(ticket=ticket, run_id=run_id, numbers=numbers))
        assert answer is None or isinstance(answer, Refusal)
        return answer

    def retry(self, run_id: int, *names: str, downstream: bool = False, everything: bool = False) -> Refusal | None:
        numbers = self.numbers(run_id, names)
        answer = self.ask(
            lambda ticket: RetryAsked(ticket=ticket, run_id=run_id, numbers=numbers, downstream=downstream, everything=everything)
        )
        assert answer is None or isinstance(answer, Refusal)
        return answer

    def edit(
        self,
        run_id: int,
        tasks: Tasks,
        *,
        downstream: bool = False,
        everything: bool = False,
        edits: int | None = None,
        **fields: Any,
    ) -> object:
        """Give a run another specification. Returns the answer."""
        run = self.machine.runs[run_id]
        spec = decode_json(json.dumps({"tasks": tasks, **fields}).encode())
        printed = [Printed(revision, number, self.printed[run_id, revision]) for revision, number in run.printed.items()]
        pool = spec.pool or run.pool
        plan = planned(RunSnapshot.of(run), spec, printed, pools=None, default_pool=pool, downstream=downstream)
        edit = plan.edit
        before = len(self.records)
        answer = self.ask(
            lambda ticket: EditAsked(
                ticket=ticket,
                run_id=run_id,
                edits=len(run.graph.edits) if edits is None else edits,
                revision=run.revision,
                edit=edit,
                tags=spec.tags or run.tags,
                pool=pool,
                parameters=spec.run_parameters(),
                document=b"",
                completed=plan.completed,
                again=plan.again,
                everything=everything,
            )
        )
        for record in self.records[before:]:
            if isinstance(record, RunEdited):
                self.edits[run_id, record.revision] = edit
        return answer

    def numbers(self, run_id: int, names: Iterable[str]) -> tuple[int, ...] | None:
        """What names given to a command mean."""
        graph = self.machine.runs[run_id].graph
        return tuple(dict.fromkeys(number for name in names for number in graph.named(name) or ())) or None

    # -- attempts -----------------------------------------------------------------------------------------------------

    def key(self, run_id: int, name: str) -> Key:
        """The current or last attempt of a task, as its host knows it."""
        run = self.machine.runs[run_id]
        number = self.number(run_id, name)
        flight = run.in_flight.get(number)
        if flight is not None:
            return run_id, flight.number, flight.attempt
        return run_id, number, run.attempts[number]

    def number(self, run_id: int, name: str) -> int:
        """The number that a task has by now."""
        number = self.machine.runs[run_id].graph.number_of(name)
        assert number is not None, name
        return number

    def start(self, run_id: int, *names: str) -> Step:
        """The current attempts of these tasks have a process."""
        return self.tell(*(AttemptStarted(*self.key(run_id, name), self.wall) for name in names))

    def end(self, run_id: int, *names: str, outcome: Outcome = Outcome.SUCCEEDED, seconds: float | None = 1.0) -> Step:
        """The current attempts of these tasks end."""
        return self.tell(*(AttemptEnded(*self.key(run_id, name), outcome, seconds, "result") for name in names))

    def generated(self, run_id: int, name: str, tasks: Tasks) -> Addition:
        """What a generator that has printed `tasks` adds to its run as it is."""
        run = self.machine.runs[run_id]
        return expand_generated(
            json.dumps(tasks).encode(),
            run_parameters=run.parameters,
            graph=run.graph,
            generator=self.number(run_id, name),
            pools=None,
            default_pool=run.pool,
        )

    def generate(self, run_id: int, name: str, tasks: Tasks) -> Step:
        """A generator SUCCEEDS and has printed `tasks`, which may be refused."""
        addition, refusal = None, None
        try:
            addition = self.generated(run_id, name, tasks)
        except SpecificationError as error:
            refusal = str(error)
        step = self.tell(AttemptEnded(*self.key(run_id, name), Outcome.SUCCEEDED, 1.0, "result", addition, refusal))
        for record in step.records:
            if isinstance(record, TasksGenerated):
                self.printed[run_id, record.revision] = json.dumps(tasks).encode()
        return step

    # -- simulated hosts ----------------------------------------------------------------------------------------------

    def obey(self) -> list[Event]:
        """Carry out the commands so far on the simulated hosts, start what fits, and return what the hosts tell at once."""
        told: list[Event] = []
        for command in self.commands:
            host = self.hosts.get(command.host)
            if host is None:
                continue
            if isinstance(command, StartAttempts):
                host.waiting += [(command.run_id, *pair) for pair in zip(command.numbers, command.attempts, strict=True)]
            elif isinstance(command, RecallAttempts):
                told += [AttemptEnded(*key, Outcome.RETURNED, None, None) for key in command.keys if key in host.waiting]
                keys = set(command.keys)
                host.waiting = deque(key for key in host.waiting if key not in keys)
            else:
                for key in command.keys:
                    if key in host.waiting:
                        host.waiting.remove(key)
                        told.append(AttemptEnded(*key, Outcome.KILLED, None, None))
                    elif key in host.running:
                        host.finish(key, self.needs(key))
                        told.append(AttemptEnded(*key, Outcome.KILLED, 0.0, "killed"))
        self.commands.clear()
        for host in self.hosts.values():
            self._start_what_fits(host, told)
        return told

    def _start_what_fits(self, host: SimulatedHost, told: list[Event]) -> None:
        while host.waiting and host.fits(self.needs(host.waiting[0])):
            key = host.waiting.popleft()
            host.begin(key, self.needs(key))
            heapq.heappush(self.ends, (self.now + self.lasts(key), len(self.sent) + len(host.running), key))
            told.append(AttemptStarted(*key, self.wall))

    def needs(self, key: Key) -> Needs:
        return self.machine.runs[key[0]].graph.policy(key[1]).needs

    def run(self, until: Callable[[], bool] = lambda: False, *, most: float = 1e9) -> None:
        """Let the hosts work, every attempt succeeding after `lasts`, until nothing happens any more, or `until` holds."""
        limit = self.now + most
        told = self.obey()
        while not until():
            if told:
                self.tell(*told)
            elif (times := [time for time in (self.due, self.ends[0][0] if self.ends else None) if time is not None]) and min(
                times
            ) <= limit:
                self.now = max(self.now, min(times))
                self.tell(*self._finished())
            else:
                return
            told = self.obey()
        if told:
            self.tell(*told)

    def _finished(self) -> list[Event]:
        finished: list[Event] = []
        while self.ends and self.ends[0][0] <= self.now:
            _, _, key = heapq.heappop(self.ends)
            host = self.hosts[self.sent[key]]
            if key in host.running:
                host.finish(key, self.needs(key))
                finished.append(AttemptEnded(*key, Outcome.SUCCEEDED, self.lasts(key), "result"))
        return finished

    # -- what there is to see -----------------------------------------------------------------------------------------

    def of(self, run_id: int) -> Run:
        return self.machine.runs[run_id]

    def phase(self, run_id: int, name: str) -> Phase:
        return Phase(self.of(run_id).phases[self.number(run_id, name)])

    def phases(self, run_id: int) -> dict[str, Phase]:
        graph = self.of(run_id).graph
        return {graph.task_id(number): Phase(self.of(run_id).phases[number]) for number in range(graph.live, graph.size)}

    def state(self, run_id: int) -> State:
        return self.of(run_id).state

    def attempts(self, run_id: int, name: str) -> int:
        return self.key(run_id, name)[2]

    def moves(self, run_id: int) -> list[State]:
        """The states that were recorded of a run, in their order."""
        return [record.state for record in self.records if isinstance(record, RunMoved) and record.run_id == run_id]
