"""What the runs of the soak do, and what must come of it: random graphs of tasks of many kinds.

A round makes runs with `random_run`, and steering changes them as it changes the real ones. Each task writes a line into the
ledger when it has done its work (`d`), or when it is about to fail (`f`): run, task, attempt and life. It writes its own name and
a word to both of its streams. An edit gives it another word, so that the output tells which specification an attempt was of.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from random import Random
from typing import Any

from support.deployment import Task, shell

_LINE = 'echo "{what} $DAGGYR_RUN_ID $DAGGYR_ATTEMPT $DAGGYR_LIFE $DAGGYR_TASK_ID" >> ledger'
DONE, FAILS = _LINE.format(what="d"), _LINE.format(what="f")

# How many tasks of a hundred are of which kind; the others are plain.
_KINDS = {"flaky": 8, "chatty": 6, "forking": 8, "sleeping": 12, "stubborn": 4, "many": 4, "generator": 3, "doomed": 1, "slow": 1}
DOOMED = ("doomed", "slow")  # kinds that end ERRORED


@dataclass
class Planned:
    """One task of a specification, and what it is to do."""

    name: str
    kind: str
    word: str
    children: list[str]
    pool: str
    amount: int = 0  # bytes, milliseconds or tasks, by its kind
    values: list[str] = field(default_factory=list)  # of its parameter, if it has one

    @property
    def parameter(self) -> str:
        return "{{" + self.name.upper() + "}}"

    def definition(self) -> Task:
        """Return the task as a specification has it."""
        word = f"{self.word}-{self.parameter}" if self.values else self.word
        says = f'echo "out {self.name} {word} $DAGGYR_ATTEMPT" && echo "err {self.name} {word} $DAGGYR_ATTEMPT" >&2'
        more: dict[str, Any] = {"children": self.children, "pool": self.pool}
        match self.kind:
            case "flaky":
                script = f"[ $((DAGGYR_ATTEMPT % 3)) -eq 0 ] || {{ {FAILS}; exit 3; }}; {says} && {DONE}"
                more |= {"max_retries": 40, "retry_delay": 1 if self.amount % 4 == 0 else 0}
            case "doomed":
                script, more["max_retries"] = f"{FAILS}; exit 3", 1
            case "slow":
                script, more["timeout"] = "sleep 60", 1
            case "chatty":
                script = f'{says} && yes "{self.name} {word}" | head -c {self.amount} && {DONE}'
            case "forking":
                script = f"setsid -f sleep 900; (trap '' TERM; sleep 800) & {says} && sleep 0.0{self.amount % 10} && {DONE}"
            case "sleeping":
                script = f"sleep {self.amount / 1000}; {says} && {DONE}"
            case "stubborn":
                script = f"trap '' TERM; sleep {self.amount / 1000}; {says} && {DONE}"
            case "generator":
                made = json.dumps({made.name: made.definition() for made in self.made()})
                script, more["is_generator"] = f"cat << 'END' && {DONE}\n{made}\nEND", True
            case _:
                script = f"{says} && {DONE}"
        if self.values:
            more["parameters"] = {self.parameter: self.values}
        return shell(script, **more)

    def made(self) -> list[Planned]:
        """Return the tasks that a generator makes."""
        return [Planned(f"{self.name}_{each}", "plain", self.word, [], self.pool) for each in range(self.amount)]

    def names(self) -> list[str]:
        """Return the names of the tasks with a command that come of it, those that it makes left out."""
        if len(self.values) > 1:
            return [f"{self.name}.{self.parameter}:{value}" for value in self.values]
        return [self.name]


@dataclass
class PlannedRun:
    """One run as it was asked for, and what people have asked since. A copy of the tracker has a copy of it."""

    tasks: dict[str, Planned]
    fresh: int = 0  # how many names and words were given out
    again: Counter[str] = field(default_factory=Counter)  # how often a task that may have been COMPLETED was asked for again
    marked: set[str] = field(default_factory=set)  # tasks that a person ever called COMPLETED, by name
    killed: set[str] = field(default_factory=set)  # tasks that a person ever killed
    killed_all: bool = False  # a person ever killed the run
    numbers: dict[str, set[int]] = field(default_factory=dict)  # all that a task had, because an edit may give it another
    words: dict[str, set[str]] = field(default_factory=dict)  # all that a task was given

    def __post_init__(self) -> None:
        for task in self.tasks.values():
            self.words.setdefault(task.name, set()).add(task.word)

    def numbered(self, tasks: list[Any]) -> None:
        """Note the numbers that the run's tasks have now."""
        for task in tasks:
            self.numbers.setdefault(task["task_id"], set()).add(task["task_number"])

    def document(self) -> dict[str, Task]:
        return {task.name: task.definition() for task in self.tasks.values()}

    def expected(self) -> dict[str, Planned]:
        """Return all tasks with a command by their names, those that generators make included."""
        found = {}
        for task in self.tasks.values():
            found |= dict.fromkeys(task.names(), task)
            if task.kind == "generator":
                found |= {made.name: made for made in task.made()}
        return found

    def below(self, name: str) -> set[str]:
        """Return the tasks of the specification that depend on one, itself included."""
        found, left = {name}, [name]
        while left:
            for child in self.tasks[left.pop()].children:
                if child not in found:
                    found.add(child)
                    left.append(child)
        return found

    def asked_again(self, name: str, *, downstream: bool = False) -> None:
        """Note that a task may run again although it was COMPLETED, with all that depends on it if so."""
        for each in self.below(name) if downstream else {name}:
            task = self.tasks[each]
            made = task.made() if task.kind == "generator" else []
            for one in [*task.names(), *(made_one.name for made_one in made)]:
                self.again[one] += 1

    def given(self, task: Planned) -> None:
        """Note a task that is added or changed."""
        self.tasks[task.name] = task
        self.words.setdefault(task.name, set()).add(task.word)

    def hopeless(self) -> set[str]:
        """Return the names of the tasks that depend on one that ends ERRORED, whatever their kind."""
        found: set[str] = set()
        for task in self.tasks.values():
            if task.kind in DOOMED:
                found |= self.below(task.name) - {task.name}
        return found

    def new_name(self) -> str:
        self.fresh += 1
        return f"t{self.fresh}"

    def new_word(self) -> str:
        self.fresh += 1
        return f"w{self.fresh}"


def random_task(random: Random, run: PlannedRun, children: list[str]) -> Planned:
    """Return a new task of a random kind."""
    kinds = [*_KINDS, "plain"]
    kind = random.choices(kinds, [*_KINDS.values(), 100 - sum(_KINDS.values())])[0]
    task = Planned(run.new_name(), kind, run.new_word(), children, "here" if random.random() < 0.08 else "farm")
    match kind:
        case "chatty":
            task.amount = random.choice([5_000, 70_000, 300_000, 300_000, 1_500_000])
        case "sleeping" | "stubborn":
            task.amount = random.choice([20, 100, 500, 2_000])
        case "generator":
            task.amount = random.randrange(1, 12)
        case "many":
            task.values = [f"v{each}" for each in range(random.randrange(2, 10))]
        case _:
            task.amount = random.randrange(100)
    if kind in DOOMED:
        task.children = children[:1] if random.random() < 0.3 else []
    return task


def random_run(random: Random) -> PlannedRun:
    """Return a run of up to a thousand tasks, in layers."""
    run = PlannedRun({})
    below: list[str] = []
    for _ in range(random.choice([1, 3, 8])):
        layer = [random_task(random, run, _some(random, below)) for _ in range(random.randrange(5, 130))]
        for task in layer:
            run.given(task)
        below = [task.name for task in layer]
    return run


def _some(random: Random, names: list[str]) -> list[str]:
    return sorted(random.sample(names, min(len(names), random.choice([0, 1, 1, 2, 4]))))


def lines(text: str) -> Iterator[tuple[str, int, str, int, int]]:
    """Yield what each line of the ledger says: what, run, task, attempt and life."""
    for line in text.splitlines():
        what, run, attempt, life, task = line.split(" ", 4)
        yield what, int(run), task, int(attempt), int(life, 16)
