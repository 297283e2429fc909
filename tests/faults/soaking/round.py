"""One round of the soak: a deployment of its own, runs, faults and requests in a random order, and the verdict in the end."""

from __future__ import annotations

import time
from collections.abc import Callable
from random import Random

from farm import Farm
from support.deployment import SHORT_LEASE
from support.postgres_server import PostgresServer
from support.small_disk import SmallDisk

from soaking.asked import ASKED, Asked
from soaking.broken_clocks import ClockedDeployment
from soaking.copies_kept import Copies
from soaking.faults import Faults, Memory
from soaking.judged import Judge, Verdict
from soaking.work import lines

PATIENCE = 600.0  # seconds for all runs to end once nothing is broken any more
STEPS = 50  # faults and requests of a round
PAUSE = 4.0  # seconds, at most, between two of them

SETTINGS = f"{SHORT_LEASE}\nkill_grace = 2"
POOLS = '[pools.farm]\nexecutor = "agent"\n[pools.here]\nexecutor = "local"\nworkers = 2'


class Round:
    """Life: made, then `run`. All that is chosen comes from the seed."""

    def __init__(
        self,
        deployment: ClockedDeployment,
        tracker: str,
        seed: int,
        disks: dict[str, SmallDisk],
        tracker_disk: SmallDisk | None,
        postgres: PostgresServer | None,
        without: frozenset[str],
    ) -> None:
        self.random = Random(seed)
        self.deployment, self.without = deployment, without
        self.farm = Farm(deployment, tracker, SETTINGS, POOLS)
        self.faults = Faults(self.farm, self.random, disks, tracker_disk, postgres)
        self.copies = Copies(deployment, tracker, postgres)
        self.asked = Asked(self.faults, self.random, self.copies)
        self.did: list[str] = []  # in their order

    @property
    def memory(self) -> Memory:
        return self.faults.memory

    def run(self) -> Verdict:
        """Returns the verdict. Raises AssertionError at what stops the round."""
        faults, asked = self.faults, self.asked
        faults.start_coordinator()
        faults.start_agents()
        for _ in range(self.random.choice([1, 2, 4])):
            asked.submit()
        actions: dict[str, tuple[Callable[[], bool | None], int]] = {
            name: (getattr(faults, name), often) for name, often in faults.all(self.without)
        }
        actions |= {name: (getattr(asked, name), often) for name, often in ASKED.items() if name not in self.without}
        names = list(actions)
        for _ in range(STEPS):
            self._go_on()
            name = self.random.choices(names, [actions[each][1] for each in names])[0]
            self.did.append(name)
            if actions[name][0]() is False:
                self.did.pop()
            faults.runs_still()
        faults.heal()
        self._settle()
        return self._verdict()

    def _go_on(self) -> None:
        """Let some tasks be done; not for long, because what is left may wait for a person."""
        enough, deadline = self._lines() + self.random.randrange(60), time.monotonic() + self.random.random() * PAUSE
        while self._lines() < enough and time.monotonic() < deadline:
            time.sleep(0.02)

    def _lines(self) -> int:
        return self.deployment.read("ledger").count("\n")

    def _settle(self) -> None:
        """Wait until all runs have ended, and ask again for what people have killed, until nothing of that is left."""
        deployment, deadline = self.deployment, time.monotonic() + PATIENCE
        for _ in range(5):
            for run_id in self.asked.runs:
                self._ended(run_id, deadline)
            again = [run_id for run_id, run in self.asked.runs.items() if self._left(run_id)]
            if not again:
                break
            for run_id in again:
                deployment.ask(lambda server, run_id=run_id: server.retry(run_id, all=True))  # type: ignore[misc]
        self._no_process(deadline)

    def _left(self, run_id: int) -> bool:
        """Whether tasks wait that a person must ask for: killed ones, and what a kill has left behind."""
        run = self.asked.runs[run_id]
        hopeless, expected = run.hopeless(), run.expected()
        for name, state in self.deployment.states(run_id).items():
            planned = expected.get(name)
            if state == "KILLED":
                assert run.killed_all or name in run.killed, f"run {run_id} {name} is KILLED, and nobody asked for it"
                return True
            if state == "QUEUED" and planned is not None and planned.name not in hopeless and "_" not in planned.name:
                assert run.killed_all or run.killed, f"run {run_id} {name} is QUEUED, and the run has ended"
                return True
        return False

    def _ended(self, run_id: int, deadline: float) -> None:
        while (run := self.deployment.run(run_id))["state"] not in ("COMPLETED", "ERRORED", "KILLED"):
            self.faults.runs_still()
            if time.monotonic() > deadline:
                waiting = [name for name, state in self.deployment.states(run_id).items() if state in ("QUEUED", "RUNNING")]
                why = {
                    name: (self.deployment.why(run_id, name), self.deployment.task(run_id, name)["attempts"][-2:])
                    for name in waiting[:8]
                }
                raise AssertionError(f"run {run_id} hangs: {run}\n{len(waiting)} wait or run: {why}\n{self.deployment.agents()}")
            time.sleep(0.1)

    def _no_process(self, deadline: float) -> None:
        """Nothing that a task has started is left, although agents and coordinator go on."""
        while left := [process for process in self.deployment.processes() if self._of_a_task(process.pid)]:
            assert time.monotonic() < deadline, f"processes of tasks were left: {[process.cmdline() for process in left]}"
            time.sleep(0.1)

    def _of_a_task(self, pid: int) -> bool:
        try:
            with open(f"/proc/{pid}/environ", "rb") as file:
                return b"\0DAGGYR_ATTEMPT=" in b"\0" + file.read()
        except OSError:
            return False

    def _verdict(self) -> Verdict:
        deployment, asked = self.deployment, self.asked
        seen = {}
        for run_id in asked.runs:
            tasks = deployment.tasks(run_id)
            asked.runs[run_id].numbered(tasks)
            commands = [task["task_id"] for task in tasks if task["task_type"] != "STRUCTURAL"]
            seen[run_id] = {name: deployment.task(run_id, name) for name in commands}
        listed = {run["run_id"] for run in deployment.runs()}
        assert listed == set(asked.runs), f"the runs are {listed}, and not {set(asked.runs)}"
        self.faults.end_coordinator_for_good()
        judge = Judge(list(lines(deployment.read("ledger"))), restored=asked.restored > 0, were_full=self.faults.were_full)
        assigned = self.copies.assigned()
        for run_id, run in asked.runs.items():
            judge.judge(run_id, run, seen[run_id], assigned)
        judge.verdict.done.update(self.did)
        judge.verdict.done["refused"] += asked.refused
        return judge.verdict
