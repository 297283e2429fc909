"""What people ask of runs while everything breaks: more runs, edits, kills, retries, marks, copies and copies brought back.

A round (soaking/round.py) calls the methods in a random order. Each changes the plan of a run as it changes the run, once the
coordinator has said that it did. What it refuses, because the run or the task is not in the state for it, is counted. A method
answers False if there was nothing to ask for.
"""

from __future__ import annotations

import copy
import json
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random

import grpc
from support.deployment import Deployment
from support.server_calls import ServerCalls
from support.waiting import DEADLINE

from soaking.copies_kept import Copies
from soaking.faults import Faults
from soaking.work import Planned, PlannedRun, random_run, random_task

MOST_RUNS = 8
REFUSED = (grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.NOT_FOUND, grpc.StatusCode.ABORTED)
AWAY = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)

# How often each is to be asked, beside the faults.
ASKED = {"submit": 2, "change": 3, "change_values": 2, "add": 3, "remove": 2, "kill_task": 3, "kill_run": 1, "retry_task": 3}
ASKED |= {"retry_run": 3, "mark_completed": 2, "mark_queued": 2, "take_copy": 4, "restore": 4}
# The same, while the coordinator is killed.
ASKED |= {"submit_meanwhile": 2, "kill_task_meanwhile": 1, "mark_completed_meanwhile": 1}


class Asked:
    """See above. `runs` are the runs of the life that counts, by id."""

    def __init__(self, faults: Faults, random: Random, copies: Copies) -> None:
        self.faults, self.random, self.copies = faults, random, copies
        self.deployment: Deployment = faults.farm.deployment
        self.runs: dict[int, PlannedRun] = {}
        self.refused = 0
        self.killing = False  # the coordinator is to be killed while it is asked
        self.restored = 0
        # The highest run id that each life of the tracker has given out. A life that was made of a copy begins beyond all of the
        # life that was copied. It begins beyond all of other lives that were made of that one, too, unless the server's clock was
        # turned, because the age of the copy says how many ids are left out.
        self.highest = [0]

    def submit(self) -> bool:
        if len(self.runs) >= MOST_RUNS:
            return False
        run = random_run(self.random)
        document, request_id = Path(self.deployment.spec(run.document())), f"request {self.random.random()}"
        answers: list[int] = []
        self._done(lambda server: answers.append(server.submit(document, request_id=request_id)))
        (run_id,) = answers
        assert run_id > self.highest[-1], f"run {run_id} was given out again: there was {self.highest}"
        self.highest[-1] = run_id
        self.runs[run_id] = run
        return True

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

    def change_values(self) -> bool:
        """Give a task with a parameter more values, and take one away."""
        run_id, run = self._any_run()
        several = sorted(task.name for task in run.tasks.values() if len(task.values) > 1)
        if not several:
            return False
        edited = copy.deepcopy(run)
        task = edited.tasks[self.random.choice(several)]
        gone = self.random.choice(task.values)
        task.values = [*(value for value in task.values if value != gone), edited.new_word(), edited.new_word()]
        edited.asked_again(task.name)
        self._edit(run_id, edited)
        return True

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
        edited.numbered(self.deployment.tasks(run_id))
        document = json.dumps({"tasks": edited.document()}).encode()
        if self._done(lambda server: server.edit(run_id, document, remove=True, downstream=downstream)):
            self.runs[run_id] = edited

    # -- kill, retry, mark --------------------------------------------------------------------------------------------

    def kill_task(self) -> None:
        run_id, run = self._any_run()
        task = self._any_task(run)
        if self._done(lambda server: server.kill(run_id, [task.name])) or self.killing:  # a repetition may be refused
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
        if task.kind == "generator":
            return
        if self._done(lambda server: server.mark(run_id, [task.name], "COMPLETED")) or self.killing:
            run.marked |= set(task.names())

    def mark_queued(self) -> None:
        run_id, run = self._any_run()
        task = self._any_task(run)
        if self._done(lambda server: server.mark(run_id, [task.name], "QUEUED")):
            run.asked_again(task.name)

    # -- the same while the coordinator is killed: what may be repeated is repeated until there is an answer -------------------

    def submit_meanwhile(self) -> bool:
        return self._meanwhile(self.submit)

    def kill_task_meanwhile(self) -> bool:
        return self._meanwhile(self.kill_task)

    def mark_completed_meanwhile(self) -> bool:
        return self._meanwhile(self.mark_completed)

    def _meanwhile(self, request: Callable[[], bool | None]) -> bool:
        self.killing = True
        try:
            return request() is not False
        finally:
            self.killing = False

    def _done(self, question: Callable[[ServerCalls], object]) -> bool:
        """Ask, and return whether it was done; False if it is not possible now."""
        try:
            if self.killing:
                self._ask_meanwhile(question)
            else:
                self.deployment.ask(question)
        except grpc.RpcError as error:
            if error.code() not in REFUSED:  # type: ignore[attr-defined]
                raise
            self.refused += 1
            return False
        return True

    def _ask_meanwhile(self, question: Callable[[ServerCalls], object]) -> None:
        """Ask from a thread, and kill the coordinator a moment later. Raises what the last coordinator answers."""
        with ThreadPoolExecutor(1) as thread:
            answer = thread.submit(self._repeated, question)
            time.sleep(self.random.choice([0.0, 0.005, 0.02, 0.1]))
            self.faults.kill_coordinator()
            answer.result()

    def _repeated(self, question: Callable[[ServerCalls], object]) -> None:
        deadline = time.monotonic() + DEADLINE
        while True:
            server = ServerCalls(self.deployment.address, None)
            try:
                question(server)
            except grpc.RpcError as error:
                if error.code() not in AWAY or time.monotonic() > deadline:  # type: ignore[attr-defined]
                    raise
                time.sleep(0.02)
            else:
                return
            finally:
                server.close()

    def _any_run(self) -> tuple[int, PlannedRun]:
        return self.random.choice(sorted(self.runs.items(), key=lambda item: item[0]))

    def _any_task(self, run: PlannedRun) -> Planned:
        return run.tasks[self.random.choice(sorted(run.tasks))]

    # -- copies -------------------------------------------------------------------------------------------------------

    def take_copy(self) -> None:
        self.copies.make(self.runs, len(self.highest) - 1)

    def restore(self) -> bool:
        """Bring a copy back while agents go on, stand still, or were killed."""
        if not self.copies.made:
            return False
        faults = self.faults
        how = self.random.choice(["go on", "freeze", "kill"])
        if how == "freeze":
            faults.freeze_agent()
        elif how == "kill":
            faults.kill_agent()
        faults.end_coordinator(self.random.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM]))
        made = self.random.choice(self.copies.made[-2:])
        self.runs = self.copies.bring_back(made)
        self.highest.append(self.highest[made.life] if faults.turned else max(self.highest))
        faults.start_coordinator()
        self.restored += 1
        return True
