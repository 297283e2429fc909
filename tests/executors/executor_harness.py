"""`Harness` plays the driver for one executor: it gives assignments, hears what is reported, and holds it to the contract.

Tests use it in the words of the field: they `give` attempts, wait for their `result`, read their `output`. What an executor must
never tell (a second result, output after the result, another executor's attempt) is written down in `CollectedReports.faults`,
and the fixtures that make a harness look there in the end.
"""

from __future__ import annotations

import asyncio
import itertools
import signal
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from support.task_specs import Ident, ident, shell
from support.waiting import DEADLINE

from daggyr.v1.task_pb2 import (
    HOST_AVAILABLE,
    HOST_GONE,
    STDERR,
    STDOUT,
    Assignment,
    AssignmentBatch,
    AttemptKey,
    AttemptOutcome,
    AttemptResult,
    AttemptUpdate,
    Host,
    HostState,
    OutputStream,
    TaskSpec,
    TaskTemplate,
)
from daggyr_server.executors.base import Executor, Wanted
from daggyr_server.executors.context import ExecutorContext

MAX_CHUNK = 256 * 1024
GRACE = 0.5  # seconds from SIGTERM to SIGKILL, for what ignores SIGTERM
PATIENCE = 60.0  # the same, for tasks that have to end by themselves before that
_KILLED = 1 << (signal.SIGKILL - 1)
_PF_EXITING = 0x4


def executor_context(**changes: Any) -> ExecutorContext:
    """Return a coordinator's context in which lease, heartbeat and grace are so long that a slow machine does not matter."""
    given: dict[str, Any] = {
        "tracker_id": "tracker-1",
        "epoch": 1,
        "life": 1,
        "lease": 3600.0,
        "heartbeat": 300.0,
        "grace": PATIENCE,
    }
    given["pass_environment"] = ("INHERITED",)
    given |= changes
    given.setdefault("lives", dict.fromkeys(range(1, given["epoch"] + 1), given["life"]))  # earlier starts are the same tracker's
    return ExecutorContext(**given)


async def eventually(condition: Callable[[], object], seconds: float = DEADLINE) -> None:
    """Wait for a condition that no report tells of, such as a file or the end of a process."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.01)


def runs(pid: int) -> bool:
    """Whether the process may still execute anything: it is there, is no zombie, and was not killed.

    A process that was killed executes nothing more, though it may take the kernel some time to end it. SIGKILL is then pending
    (proc_pid_status(5); for any signal that ends all of a process, signal(7)), or the process is on its way out (PF_EXITING in
    the flags of proc_pid_stat(5)).
    """
    try:
        state, *numbers = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines())
    except (OSError, ValueError):
        return False
    pending = int(status["SigPnd"], 16) | int(status["ShdPnd"], 16)
    return not (state in "ZX" or pending & _KILLED or int(numbers[5]) & _PF_EXITING)


def written_pid(path: Path) -> int:
    """Return the process id that a task has written into a file, or 0 until all of it is there."""
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    return int(text) if text.endswith("\n") else 0


async def pid_in(path: Path) -> int:
    """Return the process id that a task writes into a file, once it is there."""
    await eventually(lambda: written_pid(path))
    return written_pid(path)


@dataclass
class Told:
    """What was told of one attempt."""

    host: str = ""
    starts: int = 0
    results: list[AttemptResult] = field(default_factory=list)
    pieces: dict[OutputStream, dict[int, bytes]] = field(default_factory=lambda: {STDOUT: {}, STDERR: {}})

    @property
    def result(self) -> AttemptResult:
        (result,) = self.results
        return result

    @property
    def outcome(self) -> str:
        return AttemptOutcome.Name(self.result.outcome)

    @property
    def notes(self) -> str:
        return "\n".join(self.result.notes)

    def output(self, stream: OutputStream = STDOUT) -> bytes:
        """Return what came of a stream, in order and without what was cut."""
        data = bytearray()
        end = 0
        for offset, piece in sorted(self.pieces[stream].items()):
            data += piece[max(0, end - offset) :]
            end = max(end, offset + len(piece))
        return bytes(data)

    @property
    def text(self) -> str:
        return self.output().decode()


class CollectedReports:
    """The driver's reports (executors.base.Reports). Updates are durable at once unless `holding` is set."""

    def __init__(self) -> None:
        self.hosts: dict[str, Host] = {}  # as last told; hosts that are gone stay here
        self.all_hosts: list[Host] = []  # all that was told of hosts, in order
        self.states: list[tuple[str, HostState]] = []
        self.told: dict[Ident, Told] = {}
        self.faults: list[str] = []
        self.holding = False
        self.held: list[Callable[[], None]] = []
        self._changed = asyncio.Event()

    def host(self, host: Host) -> None:
        self.hosts[host.host] = host
        self.all_hosts.append(host)
        self.states.append((host.host, host.state))
        self._notify()

    def wanted(self) -> Sequence[Wanted]:
        return ()

    def updates(self, host: str, updates: Sequence[AttemptUpdate], durable: Callable[[], None]) -> None:
        for update in updates:
            self._hear(host, update)
        if self.holding:
            self.held.append(durable)
        else:
            durable()
        self._notify()

    def release(self) -> None:
        """Make all updates durable that were held, and those to come at once."""
        self.holding = False
        held, self.held = self.held, []
        for durable in held:
            durable()

    def of(self, key: AttemptKey) -> Told:
        return self.told.setdefault(ident(key), Told())

    async def until(self, condition: Callable[[], object], seconds: float = DEADLINE) -> None:
        """Wait until a report makes `condition` true."""
        async with asyncio.timeout(seconds):
            while not condition():
                await self._changed.wait()

    def _notify(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    def _hear(self, host: str, update: AttemptUpdate) -> None:
        key = ident(update.key)
        told = self.told.get(key)
        if told is None:
            self.faults.append(f"{key} was never given to this executor: {update}")
            return
        if told.results:
            self.faults.append(f"{key} has ended, and yet: {update}")
        if told.host and told.host != host:
            self.faults.append(f"{key} was given to {told.host}, and {host} tells of it")
        kind = update.WhichOneof("update")
        if kind == "started":
            told.starts += 1
            if told.starts > 1 or not update.started.start_time.seconds:
                self.faults.append(f"{key} started twice, or at no time")
        elif kind == "output":
            chunk = update.output
            if not 0 < len(chunk.data) <= MAX_CHUNK or chunk.stream not in (STDOUT, STDERR):
                self.faults.append(f"{key} has a chunk of {len(chunk.data)} bytes of stream {chunk.stream}")
            told.pieces.setdefault(chunk.stream, {})[chunk.offset] = chunk.data
        elif kind == "finished":
            told.results.append(update.finished)
        else:
            self.faults.append(f"{key} has an empty update")


class Harness:
    """An open executor, and the driver's side of it."""

    _run_ids = itertools.count(1)  # no run id is used again, as with a tracker

    def __init__(self, executor: Executor, reports: CollectedReports) -> None:
        self.executor = executor
        self.reports = reports

    async def host(self) -> str:
        """Return the host that takes attempts, once there is one."""
        await self.reports.until(self.available)
        return self.available()[0]

    def available(self) -> list[str]:
        return [host.host for host in self.reports.hosts.values() if host.state == HOST_AVAILABLE]

    def is_gone(self, host: str) -> bool:
        return self.reports.hosts[host].state == HOST_GONE

    def batch(self, *specs: TaskSpec) -> AssignmentBatch:
        """A new run's tasks, each with a template of its own."""
        run_id = next(self._run_ids)
        return AssignmentBatch(
            templates=[TaskTemplate(spec=spec) for spec in specs],
            assignments=[
                Assignment(
                    key=AttemptKey(run_id=run_id, task_number=number, attempt=1, life=self.executor.context.life),
                    task_id=f"task-{number}",
                    template=number,
                )
                for number in range(len(specs))
            ],
        )

    def start(self, host: str, batch: AssignmentBatch) -> list[AttemptKey]:
        """Give a batch to a host; returns its keys."""
        for assignment in batch.assignments:
            self.reports.of(assignment.key).host = host
        self.executor.start(host, batch)
        return [assignment.key for assignment in batch.assignments]

    async def give(self, *specs: TaskSpec) -> list[AttemptKey]:
        """Give new attempts to the host that takes them."""
        return self.start(await self.host(), self.batch(*specs))

    async def give_one(self, spec: TaskSpec) -> AttemptKey:
        (key,) = await self.give(spec)
        return key

    async def ended(self, keys: Iterable[AttemptKey]) -> list[Told]:
        """Return what was told of these attempts, once all of them have a result."""
        told = [self.reports.of(key) for key in keys]
        await self.reports.until(lambda: all(one.results for one in told))
        return told

    async def ends(self, key: AttemptKey) -> Told:
        (told,) = await self.ended([key])
        return told

    async def run(self, *specs: TaskSpec) -> list[Told]:
        return await self.ended(await self.give(*specs))

    async def run_one(self, spec: TaskSpec) -> Told:
        (told,) = await self.run(spec)
        return told

    async def timed(self, script: str, folder: Path, timeout: float = 0.5, **details: Any) -> tuple[AttemptKey, float, int]:
        """Give a shell's script with a timeout that does not strike before it has written its pid into $1, a file in `folder`.

        However slow it is: where the time was too short, it must be TIMED_OUT too, and gets twice as long. Returns the key, the
        timeout in seconds, and the pid.
        """
        while True:
            path = folder / f"pid-{timeout:g}"
            told = self.reports.of(key := await self.give_one(shell(script, str(path), timeout=timeout, **details)))
            while not (pid := written_pid(path)) and not told.results:
                await asyncio.sleep(0.01)
            if pid := pid or written_pid(path):
                return key, timeout, pid
            assert told.outcome == "TIMED_OUT", told
            timeout *= 2

    async def started(self, key: AttemptKey) -> None:
        """Wait until the attempt's start was told. Its task has to run for a while."""
        await self.reports.until(lambda: self.reports.of(key).starts)

    def stop(self, *keys: AttemptKey) -> None:
        self.executor.stop(self.reports.of(keys[0]).host, keys)

    def recall(self, *keys: AttemptKey) -> None:
        self.executor.recall(self.reports.of(keys[0]).host, keys)

    async def followed(self, key: AttemptKey, stream: OutputStream = STDOUT, offset: int = 0) -> list[tuple[int, bytes]]:
        """Return all that following yields, to its end."""
        async with asyncio.timeout(DEADLINE):
            chunks = self.executor.follow(self.reports.of(key).host, key, stream, offset)
            return [(chunk.offset, chunk.data) async for chunk in chunks]
