"""The verdict of the soak finds each fault that it is for: made-up answers and ledgers, of which one thing is wrong at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from soaking.judged import Judge, Verdict
from soaking.work import Planned, PlannedRun

LIFE, OTHER = 7, 8  # of the tracker that counts, and of one that was given up


@dataclass
class Told:
    """A run of one task that did its work, as plan, tracker and ledger tell it; `restored` and `were_full` as in Judge."""

    task: Planned = field(default_factory=lambda: Planned("t1", "plain", "w1", [], "farm"))
    state: str = "COMPLETED"
    attempts: list[Any] = field(default_factory=list)
    ledger: list[tuple[str, int, str, int, int]] = field(default_factory=list)
    life: int = LIFE  # that assigned the attempts
    restored: bool = False
    were_full: bool = False
    run: PlannedRun = field(init=False)

    def __post_init__(self) -> None:
        self.run = PlannedRun({"t1": self.task})
        self.attempt("SUCCEEDED").line("d", 1)

    def attempt(self, outcome: str, word: str = "w1", name: str = "t1") -> Told:
        number = len(self.attempts) + 1
        texts = {f"std{stream}": f"{stream} {name} {word} {number}\n" for stream in ("out", "err")}
        sizes = {f"std{stream}_size": {"incomplete": False} for stream in ("out", "err")}
        self.attempts.append({"attempt": number, "outcome": outcome, "executor": [], **texts, **sizes})
        return self

    def line(self, what: str, attempt: int, life: int = LIFE) -> Told:
        self.ledger.append((what, 1, "t1", attempt, life))
        return self

    def first(self, **changes: Any) -> Told:
        self.attempts[0] |= changes
        return self

    def verdict(self) -> Verdict:
        judge = Judge(self.ledger, restored=self.restored, were_full=self.were_full)
        task = {"state": self.state, "task_number": 0, "attempts": self.attempts}
        self.run.numbered([{"task_id": "t1", "task_number": 0}])
        assigned = {(1, attempt["attempt"]): {0: self.life} for attempt in self.attempts}
        judge.judge(1, self.run, {"t1": task}, assigned)
        return judge.verdict


def lost_and_again() -> Told:
    return Told().first(outcome="LOST").attempt("SUCCEEDED").line("d", 2)


def told(**changes: Any) -> Told:
    made = Told()
    for name, value in changes.items():
        setattr(made, name, value)
    return made


def asked_again() -> Told:
    made = Told().attempt("SUCCEEDED").line("d", 2)
    made.run.asked_again("t1")
    return made


RIGHT: dict[str, Callable[[], Told]] = {
    "it ran once": Told,
    "it was lost after it had done its work": lost_and_again,
    "it was done in a life that was given up as well": lambda: told(restored=True).line("d", 1, OTHER),
    "it was asked for again": asked_again,
    "it was returned by a host without room": lambda: (
        told(were_full=True).first(outcome="RETURNED").attempt("SUCCEEDED").line("d", 2)
    ),
    "a person has said so": lambda: told(attempts=[], ledger=[], run=PlannedRun({"t1": Told().task}, marked={"t1"})),
}

WRONG: dict[str, Callable[[], Told]] = {
    "COMPLETED, and nothing was done": lambda: told(ledger=[]),
    "COMPLETED by what another life did": lambda: told(restored=True, life=OTHER),
    "COMPLETED by what another attempt did": lambda: Told().first(attempt=2),
    "COMPLETED without an attempt": lambda: told(attempts=[], ledger=[]),
    "an attempt ran twice": lambda: Told().line("d", 1),
    "done by an attempt that nobody knows": lambda: Told().line("d", 1, OTHER),
    "done again with nothing to show for it": lambda: Told().attempt("SUCCEEDED").line("d", 2),
    "returned after it had done its work": lambda: Told().first(outcome="RETURNED").attempt("SUCCEEDED").line("d", 2),
    "failed and was not told to": lambda: Told().first(outcome="FAILED").attempt("SUCCEEDED").line("d", 2),
    "failed without a word of its own": lambda: told(ledger=[]).first(outcome="FAILED").attempt("SUCCEEDED").line("d", 2),
    "succeeded and was told to fail": lambda: Told().line("f", 1),
    "killed by nobody": lambda: Told().first(outcome="KILLED").attempt("SUCCEEDED").line("d", 2),
    "timed out without a timeout": lambda: Told().first(outcome="TIMED_OUT").attempt("SUCCEEDED").line("d", 2),
    "rejected": lambda: Told().first(outcome="REJECTED").attempt("SUCCEEDED").line("d", 2),
    "a number was used again": lambda: lost_and_again().first(attempt=2),
    "another task's output": lambda: Told().first(stdout="out t2 w1 1\n"),
    "another attempt's output": lambda: Told().first(stdout="out t1 w1 2\n"),
    "a word that it never had": lambda: Told().first(stderr="err t1 w9 1\n"),
    "output was not kept, and there was room": lambda: Told().first(stdout_size={"incomplete": True}),
    "it was left behind": lambda: told(state="QUEUED", attempts=[], ledger=[]),
    "it is ERRORED": lambda: told(state="ERRORED").first(outcome="FAILED").line("f", 1),
    "it is not there": lambda: told(run=PlannedRun({"t1": Told().task, "t2": Planned("t2", "plain", "w1", [], "farm")})),
    "nobody asked for it": lambda: told(run=PlannedRun({})),
}


@pytest.mark.parametrize("what", RIGHT)
def test_what_is_right(what: str) -> None:
    verdict = RIGHT[what]().verdict()
    assert (verdict.lost, verdict.false) == ([], [])


@pytest.mark.parametrize("what", WRONG)
def test_what_is_wrong(what: str) -> None:
    verdict = WRONG[what]().verdict()
    assert verdict.lost + verdict.false
