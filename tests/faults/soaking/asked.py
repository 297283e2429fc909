"""What people ask of runs while everything breaks: more runs, edits, kills, retries, marks, copies and copies brought back.

A round (soaking/round.py) calls the methods in a random order. Each changes the plan of a run as it changes the run, once the
coordinator has said that it did. What it refuses, because the run or the task is not in the state for it, is counted.
"""

from __future__ import annotations

import copy
import json
import signal
from collections.abc import Callable
from random import Random

import grpc
from support.deployment import Deployment
from support.server_calls import ServerCalls

from soaking.copies_kept import Copies
from soaking.faults import Faults
from soaking.work import Planned, PlannedRun, random_run, random_task

MOST_RUNS = 8
REFUSED = (grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.NOT_FOUND, grpc.StatusCode.ABORTED)

ASKED = {"submit": 2, "change": 3, "change_values": 2, "add": 3, "remove": 2, "kill_task": 3, "kill_run": 1, "retry_task": 3}
ASKED |= {"retry_run": 3, "mark_completed": 2, "mark_queued": 2, "take_copy": 3, "restore": 2}


class Asked:
    """See above. `runs` are the runs of the life that counts, by id."""

    def __init__(self, faults: Faults, random: Random, copies: Copies) -> None:
        self.faults, self.random, self.copies = faults, random, copies
        self.deployment: Deployment = faults.farm.deployment
        self.runs: dict[int, PlannedRun] = {}
        self.refused = 0
        self.restored = 0
        self.highest = 0  # of all run ids that were ever given out

    def submit(self) -> None:
        if len(self.runs) >= MOST_RUNS:
            return
        run = random_run(self.random)
        run_id = self.deployment.submit(run.document())
        assert run_id > self.highest, f"run {run_id} was given out again: there was {self.highest}"
        self.highest = run_id
        self.runs[run_id] = run

    # -- edits --------------------------------------------------------------------------------------------------------

    def change(self) -> None:
        """Give some tasks another word."""
        run_id, run = self._any_run()
        edited = copy.deepcopy(run)
        downstream = self.random.random() < 0.3
        editable = sorted(task.name for task in run.tasks.values() if task.kind != "generator")
        for name in self.random.sample(editable, min(len(editable), self.random.choice([1, 3, 20]))):
            edited.tasks[name].word = edited.new_word()
            edited.given(edited.tasks[name])
            edited.asked_again(name, downstream=downstream)
        self._edit(run_id, edited, downstream=downstream)

    def change_values(self) -> None:
        """Give a task with a parameter more values, and take one away."""
        run_id, run = self._any_run()
        several = sorted(task.name for task in run.tasks.values() if len(task.values) > 1)
        if not several:
            return
        edited = copy.deepcopy(run)
        task = edited.tasks[self.random.choice(several)]
        gone = self.random.choice(task.values)
        task.values = [*(value for value in task.values if value != gone), edited.new_word(), edited.new_word()]
        edited.asked_again(task.name)
        self._edit(run_id, edited)

    def add(self) -> None:
        run_id, run = self._any_run()
        edited = copy.deepcopy(run)
        for _ in range(self.random.choice([1, 10, 40])):
            names = sorted(edited.tasks)
            below = self.random.sample(names, min(len(names), self.random.choice([0, 1, 2])))
            edited.given(random_task(self.random, edited, sorted(below)))
        self._edit(run_id, edited)

    def remove(self) -> None:
        run_id, run = self._any_run()
        edited = copy.deepcopy(run)
        gone = set(self.random.sample(sorted(run.tasks), min(len(run.tasks) - 1, self.random.choice([1, 5]))))
        for name in gone:
            del edited.tasks[name]
        for task in edited.tasks.values():
            task.children = [child for child in task.children if child not in gone]
        self._edit(run_id, edited)

    def _edit(self, run_id: int, edited: PlannedRun, *, downstream: bool = False) -> None:
        document = json.dumps({"tasks": edited.document()}).encode()
        if self._done(lambda server: server.edit(run_id, document, remove=True, downstream=downstream)):
            self.runs[run_id] = edited

    # -- kill, retry, mark --------------------------------------------------------------------------------------------

    def kill_task(self) -> None:
        run_id, run = self._any_run()
        task = self._any_task(run)
        if self._done(lambda server: server.kill(run_id, [task.name])):
            run.killed |= set(task.names())

    def kill_run(self) -> None:
        run_id, run = self._any_run()
        if self._done(lambda server: server.kill(run_id)):
            run.killed_all = True

    def retry_task(self) -> None:
        run_id, run = self._any_run()
        task, downstream = self._any_task(run), self.random.random() < 0.5
        if task.kind == "generator":
            downstream = True
        if self._done(lambda server: server.retry(run_id, [task.name], downstream=downstream)):
            run.asked_again(task.name, downstream=downstream)

    def retry_run(self) -> None:
        run_id, _ = self._any_run()
        all_of_it = self.random.random() < 0.5
        self._done(lambda server: server.retry(run_id, all=all_of_it))

    def mark_completed(self) -> None:
        run_id, run = self._any_run()
        task = self._any_task(run)
        if task.kind != "generator" and self._done(lambda server: server.mark(run_id, [task.name], "COMPLETED")):
            run.marked |= set(task.names())

    def mark_queued(self) -> None:
        run_id, run = self._any_run()
        task = self._any_task(run)
        if self._done(lambda server: server.mark(run_id, [task.name], "QUEUED")):
            run.asked_again(task.name)

    def _done(self, question: Callable[[ServerCalls], object]) -> bool:
        """Ask, and return whether it was done; False if it is not possible now."""
        try:
            self.deployment.ask(question)
        except grpc.RpcError as error:
            if error.code() not in REFUSED:  # type: ignore[attr-defined]
                raise
            self.refused += 1
            return False
        return True

    def _any_run(self) -> tuple[int, PlannedRun]:
        return self.random.choice(sorted(self.runs.items(), key=lambda item: item[0]))

    def _any_task(self, run: PlannedRun) -> Planned:
        return run.tasks[self.random.choice(sorted(run.tasks))]

    # -- copies -------------------------------------------------------------------------------------------------------

    def take_copy(self) -> None:
        self.copies.make(self.runs)

    def restore(self) -> None:
        """Bring a copy back while agents go on, stand still, or were killed."""
        if not self.copies.made:
            return
        faults = self.faults
        how = self.random.choice(["go on", "freeze", "kill"])
        if how == "freeze":
            faults.freeze_agent()
        elif how == "kill":
            faults.kill_agent()
        faults.end_coordinator(self.random.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM]))
        self.runs = self.copies.bring_back(self.random.choice(self.copies.made[-2:]))
        faults.start_coordinator()
        self.restored += 1
