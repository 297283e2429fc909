"""A coordinator with a durable tracker and a pool of agents, `farm`, of which each part can be killed and started again.

The coordinator listens on a socket, so that agents and commands find the next one where the last one was. What tasks do is
written to a file: `LEDGER` appends a line with the task's name and the attempt, and `performed` reads them. Everything random
comes from a generator that the test seeds, and picks a count of lines, not a time.
"""

from __future__ import annotations

import asyncio
import signal
import subprocess
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from random import Random
from typing import Any

from support.deployment import PATIENT, Deployment, Program, Task, follows, shell, until

from daggyr.v1.run_pb2 import Attempt
from daggyr.v1.run_pb2 import Task as TaskMessage
from daggyr.v1.task_pb2 import AttemptOutcome

LEDGER = 'echo "$DAGGYR_TASK_ID $DAGGYR_ATTEMPT" >> ledger'  # one write(2), which O_APPEND keeps whole


def layers(count: int, width: int, script: str = LEDGER) -> dict[str, Task]:
    """`width` chains of tasks with `count` links together, named by numbers."""
    return {
        f"t{number}": shell(script, children=[f"t{number + width}"] if number + width < count else []) for number in range(count)
    }


@dataclass
class Farm:
    """Life: made, `start`, anything. The deployment ends what runs in the end."""

    deployment: Deployment
    tracker: str
    settings: str = PATIENT  # of [server], as TOML
    pools: str = '[pools.farm]\nexecutor = "agent"'
    listen: str = ""
    coordinator: Program = field(init=False)

    def __post_init__(self) -> None:
        self.deployment.killed = True  # what is killed leaves files behind
        self.listen = self.listen or f"unix:{self.deployment.folder}/s/daggyr.sock"

    def start(self) -> Program:
        """Start a coordinator; it takes connections when this returns."""
        config = f'[server]\ntracker = "{self.tracker}"\ndefault_pool = "farm"\n{self.settings}\n{self.pools}\n'
        self.coordinator = self.deployment.start_server(config=config, listen=self.listen)
        self.listen = self.deployment.address  # the same again, if it was a port of the system's choice
        return self.coordinator

    def kill(self) -> None:
        """The coordinator is gone, as from one instant to the next."""
        self.coordinator.end(signal.SIGKILL)

    def kill_and_start(self) -> None:
        """A new coordinator takes the place of one that died."""
        self.kill()
        self.start()

    def agents(self, *names: str, cores: int = 2, **options: Any) -> list[Program]:
        """Start agents of these names; they have joined when this returns."""
        return [self.deployment.start_agent(name, "--resource", f"cores={cores}", **options) for name in names]

    def result_kept(self, agent: str, work: Callable[[], None]) -> None:
        """Do `work`, after which a task ends, and wait until the agent has its result on its disk; no coordinator is there."""
        journal = self.deployment.state / "daggyr" / "agents" / agent / "journal"
        before = journal.stat().st_size
        work()
        until(lambda: journal.stat().st_size > before, "the result, on the agent's disk")

    def watching(self, run_id: int) -> subprocess.Popen[str]:
        """Start `daggyr watch`; it has seen the run when this returns, and then bears with coordinators that go away."""
        process = self.deployment.command("watch", str(run_id))
        follows(process)
        return process

    # -- what tasks have done -----------------------------------------------------------------------------------------

    def performed(self) -> list[tuple[str, int]]:
        """The task and the attempt of each line in the ledger."""
        lines = (line.split() for line in self.deployment.read("ledger").splitlines())
        return [(name, int(attempt)) for name, attempt in lines]

    def wait_for(self, lines: int) -> None:
        """Wait until that many lines are in the ledger."""
        until(lambda: self.deployment.read("ledger").count("\n") >= lines, f"{lines} lines in the ledger")

    def moments(self, random: Random, count: int, *, of: int) -> list[int]:
        """`count` lengths of the ledger, ascending, until nine tenths of `of` lines are there."""
        return sorted(random.choices(range(of * 9 // 10), k=count))

    # -- what the coordinator says of it ------------------------------------------------------------------------------

    def tasks(self, run_id: int, names: Iterable[str]) -> dict[str, TaskMessage]:
        """These tasks with their attempts."""

        async def read() -> dict[str, TaskMessage]:
            async with self.deployment.client() as client:
                return {name: await client.task(run_id, name) for name in names}

        return asyncio.run(read())

    def assert_each_once(self, run_id: int, names: Iterable[str]) -> int:
        """Each task had its effect once, in the attempt that is said to have succeeded. Returns how many attempts were LOST.

        An attempt that the last coordinator had decided on and never sent is LOST.
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
    """The outcome of an attempt's message."""
    return AttemptOutcome.Name(attempt.result.outcome)
