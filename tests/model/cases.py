"""Random specifications and random commands: what a case does is made of its seed and of what the model has by then.

Nothing here asks a server. `played.py` carries out what is drawn here.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from random import Random
from typing import Any

from model.documented import COMPLETED, QUEUED, Run

NAMES = "abcdefg"
PARAMETERS = ("{{P}}", "{{Q}}")
VALUES = ("1", "2", "3")
OUTCOMES = ("SUCCEEDED",) * 6 + ("FAILED",) * 4 + ("TIMED_OUT", "OOM_KILLED", "REJECTED")
DELAY = 10_000  # seconds, which no case waits for


@dataclass(frozen=True)
class Step:
    """One thing that happens: `what` is "end", "kill", "retry", "mark", "edit", "plan" or "restart"."""

    what: str
    names: tuple[str, ...] = ()  # tasks, by plain names
    outcome: str = ""
    printed: dict[str, Any] | None = None  # what a generator prints; None is no document at all
    state: str = ""
    document: dict[str, Any] = field(default_factory=dict)
    downstream: bool = False
    everything: bool = False
    remove: bool = False

    def __str__(self) -> str:
        told = [f"{key}={value}" for key, value in vars(self).items() if value and key != "what"]
        return " ".join([self.what, *told])


def specification(random: Random) -> dict[str, Any]:
    """A few tasks with edges from earlier to later ones; some are multiplied, some of these matched, some are generators."""
    tasks: dict[str, Any] = {}
    parameters = {name: _values(random) for name in PARAMETERS}
    for name in NAMES[: random.randint(1, 5)]:
        tasks[name] = _task(random, tasks)
    return {"parameters": parameters, "tasks": tasks}


def _values(random: Random) -> list[str]:
    return list(random.choice([VALUES[:1], VALUES[:2], VALUES[1:], VALUES[2:], VALUES]))


def _task(random: Random, earlier: dict[str, Any]) -> dict[str, Any]:
    generator = random.random() < 0.25
    words = ["x", random.choice("uv")]
    if not generator and random.random() < 0.4:
        words.append(f"-{PARAMETERS[0]}")
        if random.random() < 0.25:
            words.append(f"-{PARAMETERS[1]}")
    parents: list[Any] = []
    for parent in earlier:
        if random.random() < 0.4:
            both = [name for name in PARAMETERS if _has(words, name) and _has(earlier[parent]["details"]["command"], name)]
            parents.append({"task": parent, "match": both} if both and random.random() < 0.5 else parent)
    task = {"details": {"command": words}, "max_retries": random.choice([0, 0, 1, 2]), "is_generator": generator}
    if random.random() < 0.3:
        task["retry_delay"] = DELAY
    return {**task, "parents": parents} if parents else task


def _has(words: list[str], parameter: str) -> bool:
    return any(parameter in word for word in words)


def printed(random: Random, run: Run, generator: str) -> dict[str, Any] | None:
    """What a generator prints: nothing good, no task, or a few, whose names another task may have."""
    kind = random.random()
    if kind < 0.1:
        return None
    if kind < 0.25:
        return {}
    tasks: dict[str, Any] = {}
    for index in range(random.randint(1, 3)):
        name = f"{generator}{index}" if random.random() < 0.95 else random.choice(NAMES)
        if name not in tasks:
            tasks[name] = _task(random, tasks)
            if len(generator) > 2:
                tasks[name]["is_generator"] = False
    return tasks


def edited(random: Random, document: dict[str, Any]) -> dict[str, Any]:
    """Another specification that has much in common with this one, or is the same."""
    found = copy.deepcopy(document)
    tasks = found["tasks"]
    for _ in range(random.choice([0, 1, 1, 2, 3])):
        kind = random.random()
        name = random.choice(list(tasks))
        if kind < 0.3:
            found["parameters"][random.choice(PARAMETERS)] = _values(random)
        elif kind < 0.45:
            tasks[name]["details"]["command"][1] = random.choice("uvw")
        elif kind < 0.55:
            tasks[name]["max_retries"] = random.choice([0, 1, 2])
        elif kind < 0.65:
            words = tasks[name]["details"]["command"]
            if not tasks[name]["is_generator"]:
                tasks[name]["details"]["command"] = words[:2] if len(words) > 2 else [*words, f"-{PARAMETERS[0]}"]
        elif kind < 0.8 and len(tasks) > 1:
            del tasks[name]
        elif kind < 0.9:
            missing = [letter for letter in NAMES if letter not in tasks]
            if missing:
                tasks[random.choice(missing)] = _task(random, {})
        else:
            fresh = _task(random, {})
            tasks[name] = fresh
    order = list(tasks)
    for place, name in enumerate(order):
        tasks[name]["parents"] = [
            parent for parent in tasks[name].get("parents", []) if _fits(tasks, order[:place], name, parent)
        ]
    return found


def _fits(tasks: dict[str, Any], earlier: list[str], name: str, parent: Any) -> bool:
    """Whether a task may still have this parent."""
    other = parent if isinstance(parent, str) else parent["task"]
    if other not in earlier:
        return False
    commands = [tasks[one]["details"]["command"] for one in (name, other)]
    return isinstance(parent, str) or all(_has(words, key) for words in commands for key in parent["match"])


def drawn(random: Random, run: Run, past: list[dict[str, Any]]) -> Step:
    """What happens next to a run. `past` are the specifications that it had."""
    flying = sorted(run.in_flight())
    kind = random.random()
    if flying and kind < (0.15 if run.killing else 0.55):
        name = random.choice(flying)
        outcome = random.choice(OUTCOMES)
        made = None
        if outcome == "SUCCEEDED" and run.in_flight()[name].is_generator:
            made = printed(random, run, name)
        return Step("end", (name,), outcome, made)
    kind = random.random()
    if kind < 0.08:
        return Step("kill")
    if kind < 0.2:
        return Step("kill", _some(random, run))
    if kind < 0.3:
        return Step("retry")
    if kind < 0.55:
        downstream, everything = random.random() < 0.4, random.random() < 0.15
        return Step("retry", _some(random, run), downstream=downstream, everything=everything)
    if kind < 0.72:
        state = random.choice([COMPLETED, QUEUED])
        return Step("mark", _some(random, run)[:1], state=state, everything=random.random() < 0.15)
    if kind < 0.995:
        document = random.choice(past) if past and random.random() < 0.3 else edited(random, dict(run.document))
        what = "plan" if random.random() < 0.3 else "edit"
        return Step(
            what,
            document=document,
            downstream=random.random() < 0.3,
            everything=random.random() < 0.2,
            remove=random.random() < 0.8,
        )
    return Step("restart")


def _some(random: Random, run: Run) -> tuple[str, ...]:
    """One or two plain names of tasks, those that ended otherwise than COMPLETED more often."""
    odd = sorted(name for name, task in run.tasks.items() if task.state not in (COMPLETED, "RUNNING"))
    names = sorted({*run.tasks, *run.layout.templates})
    found = [random.choice(odd if odd and random.random() < 0.6 else names) for _ in range(random.choice([1, 1, 1, 2]))]
    return tuple(dict.fromkeys(found))
