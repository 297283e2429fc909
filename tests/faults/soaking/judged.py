"""The verdict of a round: what the ledger says is compared with what the tracker says of each task that there is in the end.

What is asserted, and what may be: an attempt is named by run, task, number and life, and the tracker's rows say which life
assigned which attempt. After a copy was brought back, all that happened between the copy and then was in a life that was given
up. Its lines in the ledger name attempts that the tracker does not know. They count for nothing: what they did may be done again,
and does not make a task COMPLETED. Everything else holds with copies as without:

* No attempt ran twice.
* Each attempt that SUCCEEDED did its work, and each that FAILED was told to fail, in the life that assigned it.
* A task that is COMPLETED has such an attempt as its last, with its own words in its output, or a person has said so.
* A task that is not COMPLETED was bound to fail, or waits for one that was.
* Work that was done twice has something to show for it: an attempt that was LOST or RETURNED by a broken host, or KILLED, or a
  person who asked for it again, or a life that was given up.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from soaking.copies_kept import Assigned
from soaking.work import DOOMED, Planned, PlannedRun

GIVEN_UP = "of a life given up"
MOST_LOST = 10  # attempts of a task, before it is ERRORED
Key = tuple[int, str, int, int]  # run, task, attempt, life


@dataclass
class Verdict:
    """The numbers of one round or of many, and every fault that was found."""

    tasks: Counter[str] = field(default_factory=Counter)  # by state
    attempts: Counter[str] = field(default_factory=Counter)  # by outcome
    repeated: Counter[str] = field(default_factory=Counter)  # work that was done again, by what there is to show for it
    done: Counter[str] = field(default_factory=Counter)  # what was broken and asked, by name
    lost: list[str] = field(default_factory=list)  # work that is missing
    false: list[str] = field(default_factory=list)  # what is told and was not so

    def add(self, other: Verdict) -> None:
        for name in ("tasks", "attempts", "repeated", "done", "lost", "false"):
            getattr(self, name).__iadd__(getattr(other, name))

    def told(self) -> str:
        def counted(counts: Counter[str]) -> str:
            return ", ".join(f"{count:,} {name}" for name, count in sorted(counts.items())) or "none"

        return (
            f"{self.tasks.total():,} tasks ({counted(self.tasks)}); "
            f"{self.attempts.total():,} attempts ({counted(self.attempts)}); "
            f"lost {len(self.lost)}, false {len(self.false)}; repeated {self.repeated.total():,} ({counted(self.repeated)})"
        )


class Judge:
    """Life: made with the lines of the ledger; `judge` for each run; then `verdict`."""

    def __init__(self, ledger: list[tuple[str, int, str, int, int]], *, restored: bool, were_full: bool) -> None:
        self.verdict = Verdict()
        self.restored, self.were_full = restored, were_full
        self.done: dict[tuple[int, str], Counter[tuple[int, int]]] = {}
        self.failed: dict[tuple[int, str], Counter[tuple[int, int]]] = {}
        for what, run_id, task, attempt, life in ledger:
            by_task = self.done if what == "d" else self.failed
            by_task.setdefault((run_id, task), Counter())[attempt, life] += 1

    def judge(self, run_id: int, run: PlannedRun, tasks: dict[str, Any], assigned: Assigned) -> None:
        """Compare one run with its plan and the ledger. `tasks` are as `task` tells them, by name, those with a command."""
        expected, hopeless = run.expected(), run.hopeless()
        numbers = {task["task_number"] for task in tasks.values()}
        for name, task in tasks.items():
            planned = expected.get(name)
            where = f"run {run_id} {name}"
            if planned is None:
                self.verdict.false.append(f"{where} is there, and nobody asked for it")
                continue
            self._state(where, task, planned, run, hopeless)
            self._work(where, run_id, task, planned, run, assigned, numbers)
        waiting = {name for name, task in tasks.items() if task["state"] != "COMPLETED"}
        for name, planned in expected.items():
            maker = name.rpartition("_")[0]  # of a task that a generator makes
            if name not in tasks and maker not in waiting:
                self.verdict.lost.append(f"run {run_id} {name} ({planned.kind}) is not there")

    def _state(self, where: str, task: Any, planned: Planned, run: PlannedRun, hopeless: set[str]) -> None:
        state, outcomes = task["state"], [attempt["outcome"] for attempt in task["attempts"]]
        self.verdict.tasks[state] += 1
        self.verdict.attempts.update(outcomes)
        name = where.split(" ", 2)[2]
        base = planned.name if planned.name in run.tasks else planned.name.rpartition("_")[0]
        if state == "COMPLETED":
            if (not outcomes or outcomes[-1] != "SUCCEEDED") and name not in run.marked:
                self.verdict.false.append(f"{where} is COMPLETED: {outcomes}")
        elif state == "ERRORED" and planned.kind in DOOMED:
            bad = "FAILED" if planned.kind == "doomed" else "TIMED_OUT"
            if outcomes[-1] != bad and outcomes.count("LOST") <= MOST_LOST:
                self.verdict.false.append(f"{where} is ERRORED: {outcomes}")
        elif base not in hopeless or state != "QUEUED":
            self.verdict.lost.append(f"{where} ({planned.kind}) is {state}: {outcomes}")

    def _work(
        self, where: str, run_id: int, task: Any, planned: Planned, run: PlannedRun, assigned: Assigned, numbers: set[int]
    ) -> None:
        """Compare a task's attempts with its lines in the ledger."""
        name, verdict = where.split(" ", 2)[2], self.verdict
        done, failed = (found.get((run_id, name), Counter()) for found in (self.done, self.failed))
        verdict.false.extend(f"{where}: attempt {key} ran {count} times" for key, count in done.items() if count > 1)
        attempts = [attempt["attempt"] for attempt in task["attempts"]]
        if attempts != sorted(set(attempts)):
            verdict.false.append(f"{where}: its attempts are {attempts}")
        known: dict[tuple[int, int], str] = {}
        for attempt in task["attempts"]:
            number, outcome = attempt["attempt"], attempt["outcome"]
            by_number = assigned.get((run_id, number), {})
            # A task that was edited or made again has another number, and keeps the attempts that it had under the other one.
            own = {by_number[each] for each in run.numbers.get(name, ()) if each in by_number}
            lives = own or {life for each, life in by_number.items() if each not in numbers}
            known |= {(number, life): outcome for life in lives}
            was_done, was_failed = ({(number, life) for life in lives} & set(lines) for lines in (done, failed))
            if outcome == "SUCCEEDED" and not was_done:
                verdict.false.append(f"{where}: attempt {number} SUCCEEDED and did nothing; lines {dict(done)}, lives {lives}")
            if outcome == "SUCCEEDED" and was_failed:
                verdict.false.append(f"{where}: attempt {number} SUCCEEDED and was told to fail")
            if outcome == "FAILED" and (was_done or not was_failed):
                verdict.false.append(f"{where}: attempt {number} FAILED and was not told to: {attempt['executor']}")
            if outcome == "KILLED" and not (run.killed_all or name in run.killed or name in run.again):
                verdict.false.append(f"{where}: attempt {number} was KILLED by nobody")
            if outcome in ("REJECTED", "OOM_KILLED") or (outcome == "TIMED_OUT" and planned.kind != "slow"):
                verdict.false.append(f"{where}: attempt {number} is {outcome}: {attempt['executor']}")
            if outcome == "SUCCEEDED":
                self._output(where, attempt, planned, run)
        did: dict[int, list[str]] = {}
        for key in sorted(done):
            did.setdefault(key[0], []).append(known.get(key, GIVEN_UP))
        for outcomes in did.values():
            # Where several lives may have assigned it, one line is that attempt's. The others are of lives that were given up.
            several = [outcome for outcome in outcomes if outcome != GIVEN_UP][1:]
            for outcome in several:
                outcomes[outcomes.index(outcome)] = GIVEN_UP
        self._repeated(where, [outcome for outcomes in did.values() for outcome in outcomes], name, run)

    def _repeated(self, where: str, did: list[str], name: str, run: PlannedRun) -> None:
        """Each time that the work was done again has something to show for it. `did` has the outcomes of those who did it."""
        verdict = self.verdict
        for outcome in did:
            if outcome == GIVEN_UP and not self.restored:
                verdict.false.append(f"{where} was done by an attempt that nobody knows: {did}")
            if outcome == "RETURNED" and not self.were_full:
                verdict.false.append(f"{where} was done by an attempt that is RETURNED, and no disk was full")
        succeeded = did.count("SUCCEEDED")
        asked = run.again[name] or name in run.killed or run.killed_all
        if succeeded > 1 and not asked:
            verdict.false.append(f"{where} SUCCEEDED {succeeded} times and was asked for once")
        verdict.repeated.update(outcome for outcome in did if outcome != "SUCCEEDED")
        verdict.repeated["asked for again"] += max(succeeded - 1, 0)

    def _output(self, where: str, attempt: Any, planned: Planned, run: PlannedRun) -> None:
        """The words of an attempt are its own: its task's name, a word that it was given, and its number."""
        if planned.kind == "generator":
            return
        base = planned.name
        words = run.words.get(base) or {planned.word}
        value = where.rpartition(":")[2] if len(planned.values) > 1 else planned.values[0] if planned.values else ""
        allowed = {f"{word}-{value}" if planned.values else word for word in words}
        for stream, short in (("stdout", "out"), ("stderr", "err")):
            size, text = attempt[f"{stream}_size"] or {}, attempt[stream]
            if size.get("incomplete"):
                if not self.were_full:
                    self.verdict.false.append(f"{where}: its {stream} may not have been kept, and no disk was full")
                continue
            first = text.split("\n", 1)[0].split(" ")
            if first[:2] != [short, base] or first[2] not in allowed or first[3] != str(attempt["attempt"]):
                self.verdict.false.append(f"{where}: attempt {attempt['attempt']} wrote {text[:80]!r}, and not {base} {allowed}")
            elif stream == "stdout" and planned.kind == "chatty":
                line = f"{base} {first[2]}"
                strange = [each for each in text.split("\n")[1:] if each not in line * 2 and "bytes not kept" not in each]
                if strange:
                    self.verdict.false.append(f"{where}: attempt {attempt['attempt']} wrote {strange[:3]!r} among {line!r}")
