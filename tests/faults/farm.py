"""A coordinator with a durable tracker and a pool of agents, `farm`, of which each part can be killed and started again.

The coordinator listens at an address that stays, so that agents and commands find the next coordinator there. Tasks write what
they do into a file: `LEDGER` appends a line with the task's name and the attempt, and `performed` reads the lines. Everything
random comes from a generator that the test seeds, and picks a count of lines, not a time.
"""

from __future__ import annotations

import asyncio
import signal
import subprocess
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from support.deployment import PATIENT, Deployment, Program, Task, follows, shell, until

from daggyr.v1.run_pb2 import Attempt
from daggyr.v1.run_pb2 import Task as TaskMessage
from daggyr.v1.task_pb2 import AttemptOutcome

LEDGER = 'echo "$DAGGYR_TASK_ID $DAGGYR_ATTEMPT" >> ledger'  # one write(2), which O_APPEND keeps whole


def layers(count: int, width: int, script: str = LEDGER) -> dict[str, Task]:
    """Return `count` tasks in `width` chains, named by numbers."""
    return {
        f"t{number}": shell(script, children=[f"t{number + width}"] if number + width < count else []) for number in range(count)
    }


@dataclass
class Farm:
    """A farm of a deployment, which ends what runs in the end. The test calls `start` before anything else."""

    deployment: Deployment
    tracker: str
    settings: str = PATIENT  # of [server], as TOML
    pools: str = '[pools.farm]\nexecutor = "agent"'
    listen: str = ""
    coordinator: Program = field(init=False)

    def __post_init__(self) -> None:
        self.deployment.killed = True  # programs that are killed leave files behind
        self.listen = self.listen or f"unix:{self.deployment.folder}/s/daggyr.sock"

    def start(self) -> Program:
        """Start a coordinator, and return once it takes connections."""
        config = f'[server]\ntracker = "{self.tracker}"\ndefault_pool = "farm"\n{self.settings}\n{self.pools}\n'
        self.coordinator = self.deployment.start_server(config=config, listen=self.listen)
        self.listen = self.deployment.address  # the next one has the same port, which the system chose
        return self.coordinator

    def kill(self) -> None:
        """Kill the coordinator."""
        self.coordinator.end(signal.SIGKILL)

    def kill_and_start(self) -> None:
        """Kill the coordinator and start a new one in its place."""
        self.kill()
        self.start()

    def agents(self, *names: str, cores: int = 2, **options: Any) -> list[Program]:
        """Start agents of these names, and return once they have joined."""
        return [self.deployment.start_agent(name, "--resource", f"cores={cores}", **options) for name in names]

    def result_kept(self, agent: str, work: Callable[[], None]) -> None:
        """Do `work` while no coordinator is there, and wait until its result is on the agent's disk."""
        journal = self.deployment.state / "daggyr" / "agents" / agent / "journal"
        before = journal.stat().st_size
        work()
        until(lambda: journal.stat().st_size > before, "the result, on the agent's disk")

    def watching(self, run_id: int) -> subprocess.Popen[str]:
        """Start `daggyr watch`, and return once it has seen the run. It then waits for coordinators that go away to come back."""
        process = self.deployment.command("watch", str(run_id), program=Path(__file__).with_name("patient_command.py"))
        follows(process)
        return process

    # -- what tasks have done -----------------------------------------------------------------------------------------

    def performed(self) -> list[tuple[str, int]]:
        """Return the task and the attempt of each line in the ledger."""
        lines = (line.split() for line in self.deployment.read("ledger").splitlines())
        return [(name, int(attempt)) for name, attempt in lines]

    def wait_for(self, lines: int) -> None:
        """Wait until that many lines are in the ledger."""
        until(lambda: self.deployment.read("ledger").count("\n") >= lines, f"{lines} lines in the ledger")

    def moments(self, random: Random, count: int, *, of: int) -> list[int]:
        """Return `count` random numbers of ledger lines, ascending, all below nine tenths of `of`."""
        return sorted(random.choices(range(of * 9 // 10), k=count))

    # -- what the coordinator says of it ------------------------------------------------------------------------------

    def tasks(self, run_id: int, names: Iterable[str]) -> dict[str, TaskMessage]:
        """Return these tasks with their attempts."""

        async def read() -> dict[str, TaskMessage]:
            async with self.deployment.client() as client:
                return {name: await client.task(run_id, name) for name in names}

        return asyncio.run(read())

    def assert_each_once(self, run_id: int, names: Iterable[str]) -> int:
        """Each task had its effect once, in the attempt that is said to have succeeded. Returns how many attempts were LOST.

        An attempt is LOST if the last coordinator had decided on it and never sent it.
        """
        performed = self.performed()
        twice = [name for name, count in Counter(name for name, _ in performed).items() if count > 1]
        assert not twice, f"done more than once: {twice}"
        attempts = dict(performed)
        assert attempts.keys() == set(names)
        lost = 0
        for name, task in self.tasks(run_id, attempts).items():
            numbers = [attempt.attempt for attempt in task.attempts]
            assert numbers == sorted(set(numbers)), f"{name}: its attempts are {numbers}"
            outcomes = [outcome(attempt) for attempt in task.attempts]
            assert outcomes.count("SUCCEEDED") == 1 and outcomes[-1] == "SUCCEEDED", f"{name}: {outcomes}"
            assert set(outcomes[:-1]) <= {"LOST", "RETURNED"}, f"{name}: {outcomes}"
            assert numbers[-1] == attempts[name], f"{name}: attempt {attempts[name]} did it, and {numbers[-1]} is said to have"
            lost += outcomes.count("LOST")
        return lost

    def assert_lost_with(self, killed: Collection[str], run_id: int, names: Iterable[str]) -> None:
        """Each task had its effect, and had it again only where an attempt was LOST with one of the agents in `killed`."""
        performed = Counter(name for name, _ in self.performed())
        assert performed.keys() == set(names)
        for name, task in self.tasks(run_id, performed).items():
            outcomes = [outcome(attempt) for attempt in task.attempts]
            assert outcomes.count("SUCCEEDED") == 1 and outcomes[-1] == "SUCCEEDED", f"{name}: {outcomes}"
            assert set(outcomes[:-1]) <= {"LOST", "RETURNED"}, f"{name}: {outcomes}"
            lost = sum(outcome(attempt) == "LOST" and attempt.host in killed for attempt in task.attempts)
            assert performed[name] <= 1 + lost, f"{name}: done {performed[name]} times, {outcomes}"


def outcome(attempt: Attempt) -> str:
    """Return the outcome of an attempt."""
    return AttemptOutcome.Name(attempt.result.outcome)
