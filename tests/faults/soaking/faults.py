"""What the soak breaks, one method for each fault, and `heal`, which mends all that stays broken.

A round (soaking/round.py) calls them in a random order. Nothing here looks at runs.
"""

from __future__ import annotations

import contextlib
import signal
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from random import Random

import psutil
from farm import Farm
from support.deployment import Program
from support.postgres_server import PostgresServer
from support.small_disk import SmallDisk

from soaking.broken_clocks import ClockedDeployment

CORES = {"one": 64, "two": 8, "three": 4}  # of the agents, by name
HOUR = 3600


@dataclass
class Memory:
    """What coordinators had in memory, in bytes, at the starts and the ends of their lives."""

    starts: list[int] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)

    def told(self) -> str:
        def megabytes(values: list[int]) -> str:
            half = statistics.median(values) if values else 0
            return f"{half / 1e6:.0f} (most {max(values, default=0) / 1e6:.0f})"

        return f"{megabytes(self.starts)} MB at the start and {megabytes(self.ends)} MB at the end of {len(self.ends)} lives"


class Faults:
    """See above. `disks` are those of the agents' state folders, by name, and of the tracker, if it has one."""

    def __init__(
        self,
        farm: Farm,
        random: Random,
        disks: dict[str, SmallDisk],
        tracker_disk: SmallDisk | None,
        postgres: PostgresServer | None,
    ) -> None:
        self.farm, self.random, self.disks, self.tracker_disk, self.postgres = farm, random, disks, tracker_disk, postgres
        self.agents: dict[str, Program] = {}
        self.frozen: set[str] = set()
        self.full: set[str] = set()  # agents whose disk is full
        self.were_full = False
        self.turned = False  # the coordinator's clock was turned
        self.memory = Memory()

    # -- the coordinator ----------------------------------------------------------------------------------------------

    def start_coordinator(self) -> None:
        self.farm.start()
        self.memory.starts.append(self._resident())

    def end_coordinator(self, how: signal.Signals) -> None:
        self.runs_still()
        self.memory.ends.append(self._resident())
        code = self.farm.coordinator.end(how)
        assert how is signal.SIGKILL or code == 0, f"a coordinator that was stopped ended with {code}"

    def end_coordinator_for_good(self) -> None:
        self.end_coordinator(signal.SIGTERM)

    def kill_coordinator(self) -> None:
        self.end_coordinator(signal.SIGKILL)
        self.start_coordinator()

    def stop_coordinator(self) -> None:
        self.end_coordinator(signal.SIGTERM)
        self.start_coordinator()

    def freeze_coordinator(self) -> None:
        process = psutil.Process(self.farm.coordinator.pid)
        with _stopped([process, *process.children(recursive=True)][: self.random.choice([1, 9])]):
            self._a_while()

    def runs_still(self) -> None:
        """Fails if a daemon has ended by itself."""
        for program in (self.farm.coordinator, *self.agents.values()):
            code = program.process.poll()
            assert code is None, f"{program.name} ({program.pid}) has ended by itself with {code}"

    def _resident(self) -> int:
        return int(psutil.Process(self.farm.coordinator.pid).memory_info().rss)

    # -- agents -------------------------------------------------------------------------------------------------------

    def start_agents(self) -> None:
        """Start the agents that do not run, each with the state folder that it had."""
        for name, cores in CORES.items():
            if name not in self.agents:
                self.clear_disk(name)
                folder = str(self.disks[name].folder / "state")
                options = ("--resource", f"cores={cores}", "--state-dir", folder)
                self.agents[name] = self.farm.deployment.start_agent(name, *options)

    def kill_agent(self) -> None:
        self._end_agent(signal.SIGKILL)

    def stop_agent(self) -> None:
        self._end_agent(signal.SIGTERM)

    def freeze_agent(self) -> None:
        """Stop one's process for a while, or until something else is done with it; what it runs goes on."""
        name = self._any_agent()
        self.agents[name].process.send_signal(signal.SIGSTOP)
        self.frozen.add(name)
        if self.random.random() < 0.5:
            self._a_while()
            self.thaw(name)

    def thaw(self, name: str) -> None:
        if name in self.frozen:
            self.agents[name].process.send_signal(signal.SIGCONT)
            self.frozen.discard(name)

    def thaw_agents(self) -> None:
        for name in sorted(self.frozen):
            self.thaw(name)

    def _end_agent(self, how: signal.Signals) -> None:
        name = self._any_agent()
        if how is not signal.SIGKILL:
            self.thaw(name)  # one that stands still does not end
        self.frozen.discard(name)
        self.agents.pop(name).end(how)
        if len(self.agents) == 1 or self.random.random() < 0.6:
            self.start_agents()

    def _any_agent(self) -> str:
        if not self.agents:
            self.start_agents()
        return self.random.choice(sorted(self.agents))

    # -- disks --------------------------------------------------------------------------------------------------------

    def fill_agents_disk(self) -> None:
        """Fill the disk of an agent's state folder, or take its inodes, for a while or until something else is done."""
        name = self._any_agent()
        self.clear_disk(name)
        self.full.add(name)
        self.were_full = True
        with contextlib.suppress(OSError):  # what tasks wrote has filled it already
            self.random.choice([self.disks[name].fill, self.disks[name].take_inodes])()
        if self.random.random() < 0.5:
            self._a_while()
            self.clear_disk(name)

    def clear_disk(self, name: str) -> None:
        self.disks[name].clear()
        self.full.discard(name)

    def clear_disks(self) -> None:
        for name in sorted(self.full):
            self.clear_disk(name)

    def fill_trackers_disk(self) -> None:
        assert self.tracker_disk is not None
        self.tracker_disk.fill()
        self._a_while()
        self.tracker_disk.clear()

    # -- Postgres -----------------------------------------------------------------------------------------------------

    def lose_postgres(self) -> None:
        assert self.postgres is not None
        self.random.choice([self.postgres.stop, self.postgres.kill])()
        self.postgres.start()

    def freeze_postgres(self) -> None:
        assert self.postgres is not None
        self.postgres.signal(signal.SIGSTOP)
        self._a_while()
        self.postgres.signal(signal.SIGCONT)

    # -- clocks -------------------------------------------------------------------------------------------------------

    def turn_coordinators_clock(self) -> None:
        self.turned = True
        self._turn("daggyr-server")

    def turn_agents_clock(self) -> None:
        self._turn(self._any_agent())

    def _turn(self, name: str) -> None:
        deployment = self.farm.deployment
        assert isinstance(deployment, ClockedDeployment)
        deployment.set_clock(name, self.random.choice([-2 * HOUR, -HOUR, 0, HOUR, 2 * HOUR]))

    # -- the end ------------------------------------------------------------------------------------------------------

    def heal(self) -> None:
        """Have all go on that stands still, give back all room, and start the agents that do not run."""
        self.thaw_agents()
        self.clear_disks()
        self.start_agents()

    def all(self, without: frozenset[str]) -> list[tuple[str, int]]:
        """Return the names of the faults that are possible here, and how often each is to happen."""
        faults = {"kill_coordinator": 4, "stop_coordinator": 2, "freeze_coordinator": 3, "kill_agent": 3, "stop_agent": 2}
        faults |= {"freeze_agent": 4, "thaw_agents": 2}
        if "disks" not in without:
            faults |= {"fill_agents_disk": 3, "clear_disks": 2}
            if self.tracker_disk is not None:
                faults["fill_trackers_disk"] = 2
        if self.postgres is not None:
            faults |= {"lose_postgres": 3, "freeze_postgres": 3}
        if "clocks" not in without:
            faults |= {"turn_coordinators_clock": 3, "turn_agents_clock": 3}
        return [(name, often) for name, often in faults.items() if name not in without]

    def _a_while(self) -> None:
        """Let what was broken be broken: mostly for a moment, at times for longer than a lease."""
        time.sleep(self.random.choice([0.05, 0.3, 1, 3, 8]))


@contextlib.contextmanager
def _stopped(processes: list[psutil.Process]) -> Iterator[None]:
    for process in processes:
        process.suspend()
    try:
        yield
    finally:
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.resume()
