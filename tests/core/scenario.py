"""Stories of runs as texts that a person can read: what happens, and all that the machine says to it.

`scenarios/README.md` explains the texts. `played` takes one, lets all happen in a world of its own, and returns the same text
with what the machine really said; `test_scenarios.py` compares the two. Every record, order, answer and time to wake of each step
is written, in the order in which the machine gave them. Nothing here knows what is right.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import yaml
from committed import restored
from durable_world import DurableWorld

from daggyr_server.core.commands import Command, Key, RecallAttempts, StartAttempts, StopAttempts
from daggyr_server.core.events import AttemptEnded, AttemptStarted, Event, MarkAsked, RunsForgotten
from daggyr_server.core.graph.graph import Graph
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
)
from daggyr_server.core.states import Outcome
from daggyr_server.core.step import Refusal, Step

LINE = "----"
START = 1_000.0


class UnreadableScenario(Exception):
    """A text that is no scenario; the message says which line, and what may stand there."""


def played(text: str) -> str:
    """The scenario with what the machine says to it. Raises UnreadableScenario."""
    story = Story()
    blocks = []
    for block in text.strip("\n").split("\n\n"):
        lines = block.strip("\n").splitlines()
        if all(line.startswith("#") for line in lines):
            blocks.append("\n".join(lines))
            continue
        happens = lines[: lines.index(LINE)] if LINE in lines else lines
        blocks.append("\n".join([*happens, LINE, *(story.told(happens) or ["nothing"])]))
    return "\n\n".join(blocks) + "\n"


class Teller(DurableWorld):
    """A world that writes down what each step of its machine says."""

    def __init__(self) -> None:
        super().__init__("main", "other")
        self.lines: list[str] = []
        self.names: dict[int, Graph] = {}
        self.said: float | None = None  # when it last said that it wakes

    def tell(self, *events: Event) -> Step:
        step = super().tell(*events)
        self.names.update((run_id, run.graph) for run_id, run in self.machine.runs.items())
        self.lines += [f"record  {self.record(record)}" for record in step.records]
        self.lines += [f"order   {self.order(command)}" for command in step.commands]
        self.lines += [f"answer  {_answer(answer)}" for answer in step.answers.values() if answer is not None]
        if step.due != self.said:
            self.said = step.due
            self.lines.append("wake    " + ("never" if step.due is None else f"at {_time(step.due)}"))
        return step

    def record(self, record: Record) -> str:
        """A record, in a line."""
        match record:
            case RunAdded():
                return f"RunAdded          run {record.run_id} in pool {record.pool}{_tags(record.tags)}"
            case RunMoved():
                counts = ", ".join(f"{count} {state.name}" for state, count in record.task_states.items())
                return f"RunMoved          run {record.run_id} is {record.state.name} at {_time(record.time - self.ahead)}" + _in(
                    counts
                )
            case RunKillAsked():
                return f"RunKillAsked      run {record.run_id}"
            case RunEdited():
                kept = f", with what revisions {', '.join(map(str, record.kept))} generated" if record.kept else ""
                return f"RunEdited         run {record.run_id} has revision {record.revision}{_tags(record.tags)}{kept}"
            case TasksGenerated():
                task = self.task(record.run_id, record.number, record.attempt)
                return f"TasksGenerated    run {record.run_id} has revision {record.revision}, by {task}"
            case AttemptsAssigned():
                tasks = self.tasks(record.run_id, record.numbers, record.attempts)
                return f"AttemptsAssigned  {tasks} to {record.host}"
            case AttemptRecorded():
                task = self.task(record.run_id, record.number, record.attempt)
                return f"AttemptRecorded   {task} {record.outcome.name} on {record.host}: the task is {record.state.name}"
            case TasksMoved():
                tasks = self.tasks(record.run_id, record.numbers, record.attempts)
                return f"TasksMoved        {tasks} to {record.state.name}, by {record.reason}"
        raise AssertionError(record)

    def order(self, command: Command) -> str:
        """A command, in a line."""
        if isinstance(command, StartAttempts):
            return f"StartAttempts     {self.tasks(command.run_id, command.numbers, command.attempts)} on {command.host}"
        name = {StopAttempts: "StopAttempts", RecallAttempts: "RecallAttempts"}[type(command)]
        tasks = ", ".join(self.task(run_id, number, attempt) for run_id, number, attempt in command.keys)
        return f"{name:<17} {tasks} on {command.host}"

    def tasks(self, run_id: int, numbers: Sequence[int], attempts: Sequence[int]) -> str:
        return ", ".join(self.task(run_id, number, attempt) for number, attempt in zip(numbers, attempts, strict=True))

    def task(self, run_id: int, number: int, attempt: int) -> str:
        """A task by its name and number, and the number of its attempt."""
        return f"{run_id}:{self.names[run_id].task_id(number)}#{number}/{attempt}"


class Story:
    """What happens in one scenario."""

    def __init__(self) -> None:
        self.world = Teller()
        self.verbs: dict[str, Callable[[list[str], dict[str, Any]], object]] = {
            "host": self.host,
            "lose": self.lose,
            "submit": self.submit,
            "start": self.start,
            "end": self.end,
            "generate": self.generate,
            "wait": self.wait,
            "kill": self.kill,
            "retry": self.retry,
            "mark": self.mark,
            "edit": self.edit,
            "restart": self.restart,
            "forget": self.forget,
            "find": self.find,
            "show": self.show,
        }

    def told(self, lines: Iterable[str]) -> list[str]:
        """Let the lines of a block happen, one after another; returns all that was said."""
        self.world.lines = []
        events: list[tuple[str, list[str]]] = []
        for line in lines:
            if line.startswith(" ") and events:
                events[-1][1].append(line)
            else:
                events.append((line, []))
        for line, below in events:
            verb, *words = line.split() or [""]
            if verb not in self.verbs:
                raise UnreadableScenario(f"{line!r}: a line begins with one of {', '.join(self.verbs)}")
            tasks = yaml.safe_load("\n".join(below)) if below else {}
            try:
                self.verbs[verb](words, tasks)
            except (AssertionError, KeyError, ValueError, IndexError) as error:
                raise UnreadableScenario(f"{line!r}: {type(error).__name__}: {error}") from error
        return self.world.lines

    # -- what happens -------------------------------------------------------------------------------------------------

    def host(self, words: list[str], below: dict[str, Any]) -> None:
        name, flags = words[0], [word for word in words[1:] if "=" not in word]
        has = {key: int(value) for key, value in (word.split("=") for word in words[1:] if "=" in word)}
        assert set(flags) <= {"ahead", "closed", "draining"}, flags
        cores = has.pop("cores", 1)
        self.world.host(
            name, cores=cores, resources=has, ahead="ahead" in flags, open="closed" not in flags, draining="draining" in flags
        )

    def lose(self, words: list[str], below: dict[str, Any]) -> None:
        self.world.lose(words[0])

    def submit(self, words: list[str], below: dict[str, Any]) -> None:
        self.world.submit(_filled(below), pool=words[0] if words else "main")

    def start(self, words: list[str], below: dict[str, Any]) -> None:
        self.world.tell(*(AttemptStarted(*key, self.world.wall) for key in self.keys(words)))

    def end(self, words: list[str], below: dict[str, Any]) -> None:
        seconds = float(words.pop()) if words[-1].replace(".", "").isdigit() else None
        outcome = Outcome[words.pop()]
        self.world.tell(*(AttemptEnded(*key, outcome, seconds, "result") for key in self.keys(words)))

    def keys(self, words: list[str]) -> list[Key]:
        """The attempts that are meant: of each task the last, or the one whose number is given."""
        keys = []
        for word in words[1:]:
            name, _, attempt = word.partition("/")
            run_id, number, last = self.world.key(int(words[0]), name)
            keys.append((run_id, number, int(attempt or last)))
        return keys

    def generate(self, words: list[str], below: dict[str, Any]) -> None:
        self.world.generate(int(words[0]), words[1], _filled(below))

    def wait(self, words: list[str], below: dict[str, Any]) -> None:
        self.world.wait(float(words[0]))

    def kill(self, words: list[str], below: dict[str, Any]) -> None:
        self.world.kill(int(words[0]), *words[1:])

    def retry(self, words: list[str], below: dict[str, Any]) -> None:
        names = [word for word in words[1:] if not word.startswith("--")]
        self.world.retry(int(words[0]), *names, downstream="--downstream" in words, everything="--all" in words)

    def mark(self, words: list[str], below: dict[str, Any]) -> None:
        run_id, *names, state = words
        numbers = self.world.numbers(int(run_id), names)
        assert numbers is not None and state in ("COMPLETED", "QUEUED"), words
        completed = state == "COMPLETED"
        self.world.ask(lambda ticket: MarkAsked(ticket=ticket, run_id=int(run_id), numbers=numbers, completed=completed))

    def edit(self, words: list[str], below: dict[str, Any]) -> None:
        self.world.edit(int(words[0]), _filled(below), downstream="--downstream" in words, everything="--all" in words)

    def restart(self, words: list[str], below: dict[str, Any]) -> None:
        self.world.start_again(committed=True)

    def forget(self, words: list[str], below: dict[str, Any]) -> None:
        self.world.tell(RunsForgotten(run_ids=(int(words[0]),)))

    def find(self, words: list[str], below: dict[str, Any]) -> None:
        events = restored(self.world.records, self.world.grown, self.world.moment)
        self.world.tell(*(event for event in events if event.run.run_id == int(words[0])))

    def show(self, words: list[str], below: dict[str, Any]) -> None:
        run_id = int(words[0])
        phases = self.world.phases(run_id)
        wanted = words[1:] or list(phases)
        self.world.lines.append(f"run {run_id} is {self.world.state(run_id).name}")
        self.world.lines += [f"  {name:<12} {phases[name].name}" for name in wanted]


def _filled(tasks: dict[str, Any]) -> dict[str, Any]:
    """Tasks as a specification has them. What they execute does not matter here, so each may leave it out."""
    filled = {}
    for name, fields in tasks.items():
        inside = {"command": ["true", *(fields or {}).get("parameters", {})]}
        rest = dict(fields or {})
        for key in ("command", "resources"):
            if key in rest:
                inside[key] = rest.pop(key)
        filled[name] = {"details": inside, "children": [], **rest}
    return filled


def _answer(answer: int | Refusal) -> str:
    return f"{answer.reason.name}: {answer.message}" if isinstance(answer, Refusal) else str(answer)


def _time(time: float) -> str:
    return f"{time - START:g} s"


def _tags(tags: object) -> str:
    return f", with tags {tags}" if tags else ""


def _in(counts: str) -> str:
    return f": {counts}" if counts else ""
