"""Plays cases against a server and compares what it tells with the model, after each step, once the server has come to rest.

`World` is one server on a sqlite tracker, with an agent that the test plays (hand_agent.py) and any number of runs. The cases
take turns, so that one restart of the server, by kill -9, is one for all of them. `test_documents.py` and `__main__.py` use it.
"""

from __future__ import annotations

import json
import signal
import time
import zlib
from random import Random
from typing import Any

import grpc
from support.deployment import PATIENT, Deployment, Program

from model.cases import Step, drawn, specification
from model.compared import PATIENCE, REFUSALS, Differs, compare_plan, compare_task
from model.documented import Run
from model.hand_agent import Hand, Name, document

STEPS = 14  # of a case
_TIMES = ("submit_time", "start_time", "stop_time")
_OF_A_RUN = ("state", "revision", "change_seq", "ready", "delayed", "blocked", "task_states", "notes", *_TIMES)


def how_it_ends(name: Name) -> str:
    """Processes that are asked to end do so, and one in four has done its work. The run's id does not matter."""
    return "SUCCEEDED" if zlib.crc32(f"{name[1]} {name[2]}".encode()) % 4 == 0 else "KILLED"


class World:
    """Life: made with a new deployment, `play`, `close`."""

    def __init__(self, deployment: Deployment) -> None:
        self.deployment = deployment
        self.hand = Hand(how_it_ends)
        self.restarts = 0
        self._server: Program | None = None
        self._start()

    def close(self) -> None:
        self.hand.close()

    def _start(self) -> None:
        config = f'[server]\n{PATIENT}\ndefault_pool = "hand"\n[pools.hand]\nexecutor = "agent"\n'
        tracker = f"sqlite:{self.deployment.folder}/state.db"
        self._server = self.deployment.start_server("--tracker", tracker, config=config)
        self.hand.dial(self.deployment.address, self.deployment.token("agent"))

    def restart(self) -> None:
        """Kill the server and start it again."""
        assert self._server is not None
        wait(self.hand.is_acknowledged, "the acknowledgement of all that was told")
        self.restarts += 1
        self.deployment.killed = True
        self._server.end(signal.SIGKILL)
        self._start()

    def play(self, seeds: range, steps: int = STEPS) -> list[str]:
        """Play a case for each seed, a step of each in turn. Returns what differed, a text for each case that did."""
        cases = [Case(self, seed) for seed in seeds]
        differed: dict[int, str] = {}
        for _ in range(steps):
            for case in [case for case in cases if case.seed not in differed]:
                try:
                    if case.step().what == "restart":
                        self._after_restart(cases, differed)
                except Differs as error:
                    differed[case.seed] = case.told(error)
        for case in [case for case in cases if case.seed not in differed]:
            try:
                case.finish()
            except Differs as error:
                differed[case.seed] = case.told(error)
        return list(differed.values())

    def _after_restart(self, cases: list[Case], differed: dict[int, str]) -> None:
        self.restart()
        listed = {run["run_id"]: run for run in self.deployment.runs()}  # before anybody asks for one of them
        for case in [case for case in cases if case.seed not in differed]:
            try:
                case.restarted(listed[case.run_id])
            except Differs as error:
                differed[case.seed] = case.told(error)


class Case:
    """One run, and the model of it."""

    def __init__(self, world: World, seed: int) -> None:
        self.world = world
        self.seed = seed
        self.random = Random(seed)
        self.steps: list[Step] = []
        spec = specification(self.random)
        self.first = spec
        self.past = [spec]
        self.shown: dict[str, Any] = {}  # the run, as it was told last
        self.model = Run(spec)
        self.run_id = world.deployment.submit(spec["tasks"], parameters=spec["parameters"])

    def told(self, error: Differs) -> str:
        """What to show of a case that differs."""
        lines = [f"seed {self.seed}, run {self.run_id}: {error}", f"  {json.dumps(self.first)}"]
        return "\n".join([*lines, *(f"  {number}. {step}" for number, step in enumerate(self.steps, 1))])

    def step(self) -> Step:
        """Draw the next step, carry it out in both, and compare. A restart is left to the world."""
        if not self.steps:
            self.compare()
        step = drawn(self.random, self.model, self.past)
        self.steps.append(step)
        if step.what != "restart":
            self._carry_out(step)
            self.compare()
        return step

    def restarted(self, listed: dict[str, Any]) -> None:
        self.model.restarted()
        self.compare(listed=listed)

    def finish(self) -> None:
        """The run goes away, and with it all that is told of it."""
        ask = self.world.deployment.ask
        if not self.model.ended:
            self._carry_out(Step("kill"))
            self.compare()
        ask(lambda server: server.delete(self.run_id))
        try:
            ask(lambda server: server.run(self.run_id))
        except grpc.RpcError as error:
            if error.code() is grpc.StatusCode.NOT_FOUND:  # type: ignore[attr-defined]
                return
            raise
        raise Differs("it was deleted, and is still told of")

    def _carry_out(self, step: Step) -> None:
        model = self.model
        if step.what == "end":
            attempt = model.in_flight()[step.names[0]]
            printed = b"no document" if step.printed is None else document(step.printed)
            is_generator = attempt.is_generator
            self.world.hand.end((self.run_id, attempt.name, attempt.number), step.outcome, printed if is_generator else b"")
            model.end(step.names[0], step.outcome, step.printed)
        elif step.what == "plan":
            compare_plan(self.model, self.world.deployment, self.run_id, step)
        else:
            said = self._ask(step)
            names = list(dict.fromkeys(name for named in step.names for name in model.named(named)))
            granted = {
                "kill": lambda: model.kill(names),
                "retry": lambda: model.retry(names, downstream=step.downstream, everything=step.everything),
                "mark": lambda: model.mark(names, step.state, everything=step.everything),
                "edit": lambda: model.edit(
                    step.document, downstream=step.downstream, remove=step.remove, everything=step.everything
                ),
            }[step.what]()
            if granted is not (said is None):
                raise Differs(f"the documents {'grant' if granted else 'refuse'} it, and the server said: {said}")
            if step.what == "edit" and granted:
                self.past.append(step.document)
        self._end_cancelled()
        model.come_to_rest()

    def _ask(self, step: Step) -> str | None:
        """Ask the server; returns why it refused."""
        ask, run_id = self.world.deployment.ask, self.run_id
        try:
            if step.what == "kill":
                ask(lambda server: server.kill(run_id, step.names))
            elif step.what == "retry":
                ask(lambda server: server.retry(run_id, step.names, downstream=step.downstream, all=step.everything))
            elif step.what == "mark":
                ask(lambda server: server.mark(run_id, step.names, step.state, all=step.everything))
            else:
                written, options = json.dumps(step.document).encode(), {"downstream": step.downstream}
                ask(lambda server: server.edit(run_id, written, remove=step.remove, all=step.everything, **options))
        except grpc.RpcError as error:
            if error.code() not in REFUSALS:  # type: ignore[attr-defined]
                raise Differs(f"{step.what}: {error}") from error
            return str(error.details())  # type: ignore[attr-defined]
        return None

    def _end_cancelled(self) -> None:
        """Hear of the ends that the server asked for."""
        hand, model = self.world.hand, self.model
        waiting = [(None, attempt) for attempt in model.orphans]
        for name, attempt in [*waiting, *model.cancelled.items()]:
            key = (self.run_id, attempt.name, attempt.number)
            wait(lambda key=key: key in hand.cancelled, f"the end of {attempt.name}, attempt {attempt.number}, to be asked for")
            if name is None:
                attempt.outcome = hand.cancelled[key]
            else:
                model.end(name, hand.cancelled[key])
        model.orphans = []

    # -- comparing --------------------------------------------------------------------------------------------------------

    def compare(self, listed: dict[str, Any] | None = None) -> None:
        """Raise Differs if the server does not come to what the model has."""
        expected = self._expected()
        deadline = time.monotonic() + PATIENCE
        while self._flying() != expected["in flight"] and time.monotonic() < deadline:
            time.sleep(0.001)  # the server is asked once it has started all that may run
        while (told := self._told()) != expected:
            if time.monotonic() > deadline:
                raise Differs(_difference(expected, told))
            time.sleep(0.005)
        after_restart = listed is not None  # what runs is told anew a moment later
        if listed is None and len(self.steps) % 5 == 0:
            listed = next(one for one in self.world.deployment.runs() if one["run_id"] == self.run_id)
        run = self.shown
        if listed is not None and (not after_restart or self.model.ended):
            several = {key: (listed[key], run[key]) for key in _OF_A_RUN if listed[key] != run[key]}
            if several:
                raise Differs(f"`runs` and `show` tell differently: {several}")
        reasons = {change["reason"] for change in run["history"]} - {None}
        if reasons != set(self.model.asked):
            raise Differs(f"its history has {sorted(reasons)}, and it was asked for {sorted(set(self.model.asked))}")
        compare_task(self.model, self.world.deployment, self.run_id, self.seed + len(self.steps))

    def _expected(self) -> dict[str, Any]:
        model = self.model
        return {
            "state": model.state,
            "revision": model.revision,
            "tasks": {name: (task.state, task.last) for name, task in model.tasks.items()},
            "in flight": {(attempt.name, attempt.number) for attempt in model.in_flight().values()},
        }

    def _flying(self) -> set[tuple[str, int]]:
        return {name[1:] for name in self.world.hand.held() if name[0] == self.run_id}

    def _told(self) -> dict[str, Any]:
        tasks = self.world.deployment.tasks(self.run_id)
        run = self.shown = self.world.deployment.run(self.run_id)  # after the tasks, so that it is not older
        return {
            "state": run["state"],
            "revision": run["revision"],
            "tasks": {
                task["task_id"]: (task["state"], task["attempt_count"]) for task in tasks if task["task_type"] != "STRUCTURAL"
            },
            "in flight": self._flying(),
        }


def wait(condition: Any, what: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > deadline:
            raise Differs(f"this never came: {what}")
        time.sleep(0.001)


def _difference(expected: dict[str, Any], told: dict[str, Any]) -> str:
    parts = []
    for key, value in expected.items():
        if value == told[key]:
            continue
        if isinstance(value, dict):
            names = sorted(name for name in {*value, *told[key]} if value.get(name) != told[key].get(name))
            parts.append("; ".join(f"{name} is {told[key].get(name)}, not {value.get(name)}" for name in names))
        else:
            parts.append(f"{key} is {told[key]}, not {value}")
    return ", ".join(parts)
