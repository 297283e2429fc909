"""The prefix executor: attempts run on the server's host, each through a command of the site, such as `nice -n 10`.

The driver calls it as `daggyr_server.executors.base.Executor` says. Each attempt has a folder and a process of its own, the
runner (runner.py), which does not depend on the coordinator: what runs when the coordinator ends goes on, and the next
coordinator takes it up from its folder. Here each attempt is one asyncio task, from its start to its result. Nothing here
starts a task's process itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import os
import shutil
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import msgspec

from daggyr.attempts.keys import Ident, ident_in, ident_of, key_of
from daggyr.attempts.outcome import without_process
from daggyr.attempts.times import duration, timestamp
from daggyr.environment import passes
from daggyr.substitution import Filling
from daggyr.v1.task_pb2 import (
    HOST_AVAILABLE,
    HOST_PAUSED,
    KILLED,
    LOST,
    REJECTED,
    RETURNED,
    STDERR,
    STDOUT,
    AssignmentBatch,
    AttemptKey,
    AttemptResult,
    AttemptStarted,
    AttemptUpdate,
    Host,
    HostFault,
    HostState,
    OutputChunk,
    OutputStream,
    Placement,
)
from daggyr_server.descriptors import as_given
from daggyr_server.executors.base import Executor, ExecutorError, Reports, forgotten
from daggyr_server.executors.context import ExecutorContext, check_patterns

from .attempt import PrefixAttempt, attempt_of, recovered
from .folder import AttemptFolder

log = logging.getLogger(__name__)

RUNNER = Path(__file__).with_name("runner.py")
FOLLOW_SECONDS = 0.1  # between two looks at an output that somebody follows
PAUSE_SECONDS = 10.0  # for which the host takes nothing after it could not start a runner

Units = Annotated[int, msgspec.Meta(ge=0, le=2**62)]


class PrefixSettings(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """What a pool with `executor = "prefix"` may say."""

    command: list[str]  # the prefix; the task's command becomes its last arguments
    directory: Path  # for the attempts' folders; on this host's own disk
    resources: dict[str, Units]  # what tasks may use at once; at least `cores`
    look_up: bool = True  # whether the task's program is looked for on this host first; false for containers and the like
    pass_environment: list[str] = []  # of the server's variables, what tasks get beside the usual

    def __post_init__(self) -> None:
        check_patterns(self.pass_environment)
        program = shutil.which(self.command[0]) if self.command else None
        if program is None:
            raise ValueError(f"`command` begins with {self.command[:1]}, which is no program of this host")
        self.command = [program, *self.command[1:]]  # a task with another PATH has the same prefix
        if not self.resources.get("cores"):
            raise ValueError("`resources` has at least 1 of `cores`")


class PrefixExecutor(Executor):
    """One pool, whose one host is the server's."""

    Settings = PrefixSettings
    sized_by = "resources"

    def __init__(self, pool: str, settings: Any, reports: Reports, context: ExecutorContext) -> None:
        super().__init__(pool, settings, reports, context)
        # Another tracker, or another pool, finds nothing of this one's, even in the same directory.
        mark = hashlib.sha256(pool.encode()).hexdigest()[:12]
        self._home = Path.cwd()  # where tasks start
        self._folder = Path(self._home, settings.directory.expanduser(), context.tracker_id, mark)
        also = (*settings.pass_environment, *context.pass_environment)
        self._environment = {name: value for name, value in os.environ.items() if passes(name, also)}
        self._attempts: dict[Ident, PrefixAttempt] = {}
        self._waiting: dict[Ident, PrefixAttempt] = {}  # of these, those that wait for resources, in order
        self._used = dict.fromkeys(settings.resources, 0)
        self._tasks: set[asyncio.Task[None]] = set()
        self._paused = False
        self._closed = False

    # -- the executor interface ---------------------------------------------------------------------------------------

    def largest(self) -> Mapping[str, int]:
        return dict(self.settings.resources)

    async def open(self) -> None:
        try:
            await asyncio.to_thread(self._folder.mkdir, mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise ExecutorError(f"pool {self.pool}: cannot use `directory` {self._folder}: {error.strerror}") from error
        self._offer(HOST_AVAILABLE)

    async def close(self) -> None:
        """Runners go on; their folders tell the next coordinator of them."""
        self._closed = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def start(self, host: str, batch: AssignmentBatch) -> None:
        fillings = [Filling(template) for template in batch.templates]
        for assignment in batch.assignments:
            ident = ident_of(assignment.key)
            if ident in self._attempts:
                continue  # it was given before
            try:
                spec = fillings[assignment.template].spec(assignment.values)
                attempt = attempt_of(
                    ident,
                    assignment,
                    spec,
                    pool_folder=self._folder,
                    home=self._home,
                    environment=self._environment,
                    resources=self.settings.resources,
                    runner={"prefix": self.settings.command, "grace": self.context.grace, "look_up": self.settings.look_up},
                )
            except ValueError as error:
                self._tell_soon(ident, without_process(REJECTED, str(error)))
                continue
            self._attempts[ident] = attempt
            self._waiting[ident] = attempt
        asyncio.get_running_loop().call_soon(self._start_waiting)

    def stop(self, host: str, keys: Sequence[AttemptKey]) -> None:
        for attempt in filter(None, map(self._attempts.get, map(ident_of, keys))):
            if attempt.ident in self._waiting:
                self._take_back(attempt, without_process(KILLED))
            else:
                attempt.stopping = True
                attempt.folder.ask_to_stop()  # if its runner is not there yet, `_run` asks it

    def recall(self, host: str, keys: Sequence[AttemptKey]) -> None:
        for attempt in filter(None, map(self._attempts.get, map(ident_of, keys))):
            if attempt.ident in self._waiting:
                self._take_back(attempt, without_process(RETURNED))

    def recover(self, placed: Sequence[tuple[AttemptKey, Placement]]) -> None:
        for key, _ in placed:
            attempt = self._attempts[ident_of(key)] = recovered(ident_of(key), self._folder)
            self._use(attempt, 1)
            self._spawn(self._take_up(attempt), f"attempt {attempt.folder.path.name}")
        # Others are not wanted any more, for instance because their run was deleted.
        for path in self._folder.iterdir():
            ident = ident_in(path.name)
            if ident is not None and ident not in self._attempts:
                self._spawn(self._clear(AttemptFolder(path)), f"attempt {path.name}, which nobody wants,")

    async def follow(self, host: str, key: AttemptKey, stream: int, offset: int) -> AsyncIterator[OutputChunk]:
        name: OutputStream = STDOUT if stream == STDOUT else STDERR
        while (attempt := self._attempts.get(ident_of(key))) is not None:
            whole = attempt.whole_stdout_bytes if stream == STDOUT else 0
            try:
                begin, data = await asyncio.to_thread(attempt.folder.next_output, name, whole, offset)
            except OSError:
                return
            if data:
                yield OutputChunk(stream=name, offset=begin, data=data)
                offset = begin + len(data)
            else:
                await asyncio.sleep(FOLLOW_SECONDS)

    # -- what waits ---------------------------------------------------------------------------------------------------

    def _start_waiting(self) -> None:
        """Start attempts in the order in which they came, as long as there is room for the first."""
        has, used = self.settings.resources, self._used
        while self._waiting and not self._paused and not self._closed:
            attempt = next(iter(self._waiting.values()))
            if any(used[name] + units > has[name] for name, units in attempt.demand.items()):
                return
            del self._waiting[attempt.ident]
            self._use(attempt, 1)
            self._spawn(self._run(attempt), f"attempt {attempt.folder.path.name}")

    def _use(self, attempt: PrefixAttempt, times: int) -> None:
        """Count what an attempt uses, or with -1, that it uses it no more."""
        for name, units in attempt.demand.items():
            self._used[name] = self._used.get(name, 0) + times * units

    def _take_back(self, attempt: PrefixAttempt, result: AttemptResult) -> None:
        del self._waiting[attempt.ident], self._attempts[attempt.ident]
        self._tell_soon(attempt.ident, result)

    # -- what runs: one asyncio task for each attempt -------------------------------------------------------------------

    async def _run(self, attempt: PrefixAttempt) -> None:
        """Start an attempt and follow it to its result."""
        folder, launched = attempt.folder, False
        try:
            await asyncio.to_thread(folder.write, attempt.order, attempt.stdin)
            with folder.life() as life:
                launched = True
                await self._start_runner(folder)
                if attempt.stopping:
                    folder.ask_to_stop()
                await self._until_runner_ends(life, attempt)
        except OSError as error:
            if not launched or await asyncio.to_thread(folder.claim):  # nothing of it has run, and nothing will
                self._end(attempt, without_process(RETURNED, f"this host cannot start it now: {error}"))
                self._pause(error)
                return
        await self._finish(attempt)

    async def _take_up(self, attempt: PrefixAttempt) -> None:
        """Follow an attempt of an earlier coordinator to its result."""
        folder = attempt.folder
        try:
            with folder.life() as life:
                # A runner opens `life` before it begins, so that one which has begun is there now, or has ended.
                begun = not await asyncio.to_thread(folder.claim)
                if begun:
                    self._tell_started(attempt)
                    await self._until_runner_ends(life, attempt)
        except FileNotFoundError:  # that coordinator ended before the folder was whole
            begun = False
        if begun:
            await self._finish(attempt)
        else:
            self._end(attempt, without_process(LOST, "it had not been started when the coordinator ended"))

    async def _start_runner(self, folder: AttemptFolder) -> None:
        """Return once the attempt's runner is there, detached from this process. Raises OSError."""
        words = as_given([sys.executable, "-I", "-S", "-X", "utf8", str(RUNNER), str(folder.path)])
        with (folder.path / "log").open("ab") as log_file:
            process = await asyncio.create_subprocess_exec(
                *words, stdin=asyncio.subprocess.DEVNULL, stdout=log_file, stderr=log_file, env={}, cwd=self._home
            )
        try:
            code = await process.wait()
        finally:
            if process.returncode is None:  # this task was cancelled
                await process.wait()
        if code:
            raise OSError(f"its runner ended with exit code {code}: {folder.log()}")

    async def _until_runner_ends(self, life: int, attempt: PrefixAttempt | None) -> None:
        """Return once the runner at the other end of the fifo `life` has ended. Its first byte says that the task has started."""
        loop = asyncio.get_running_loop()
        readable = asyncio.Event()
        loop.add_reader(life, readable.set)
        try:
            while True:
                try:
                    if not os.read(life, 4096):
                        return  # nobody has it open for writing
                    if attempt is not None:
                        self._tell_started(attempt)
                except BlockingIOError:
                    await readable.wait()
                    readable.clear()
        finally:
            loop.remove_reader(life)

    async def _finish(self, attempt: PrefixAttempt) -> None:
        """Tell the output and the result of an attempt whose runner has ended."""
        folder, whole = attempt.folder, attempt.whole_stdout_bytes
        try:
            result = await asyncio.to_thread(folder.result, whole)
            for stream, limit in ((STDOUT, whole), (STDERR, 0)):
                pieces = folder.output(stream, limit)
                while (piece := await asyncio.to_thread(next, pieces, None)) is not None:
                    chunk = OutputChunk(stream=stream, offset=piece[0], data=piece[1])
                    self.reports.updates(self.pool, [AttemptUpdate(key=attempt.key, output=chunk)], forgotten)
        except OSError as error:
            result = without_process(LOST, f"its files cannot be read: {error}")
        self._end(attempt, result)

    async def _clear(self, folder: AttemptFolder) -> None:
        """End what still runs of an attempt that nobody wants, and remove its folder."""
        with contextlib.suppress(FileNotFoundError), folder.life() as life:
            if not folder.claim():
                folder.ask_to_stop()
                await self._until_runner_ends(life, None)
        await asyncio.to_thread(shutil.rmtree, folder.path, ignore_errors=True)

    # -- telling ------------------------------------------------------------------------------------------------------

    def _offer(self, state: HostState, fault: HostFault | None = None) -> None:
        host = Host(host=self.pool, name=self.pool, state=state, resources=self.settings.resources, takes_ahead=True, fault=fault)
        self.reports.host(host)

    def _pause(self, error: OSError) -> None:
        """Take nothing for a while, because this host cannot start anything."""
        if not self._paused:
            self._paused = True
            log.warning("pool %s: nothing can be started, it is tried again in %g s: %s", self.pool, PAUSE_SECONDS, error)
            self._offer(HOST_PAUSED, HostFault(reason=f"nothing can be started: {error}", pause=duration(PAUSE_SECONDS)))
            asyncio.get_running_loop().call_later(PAUSE_SECONDS, self._resume)

    def _resume(self) -> None:
        self._paused = False
        if not self._closed:
            self._offer(HOST_AVAILABLE)
            self._start_waiting()

    def _tell_started(self, attempt: PrefixAttempt) -> None:
        start_ns = attempt.folder.start_ns()
        if start_ns is not None and not attempt.started:
            attempt.started = True
            started = AttemptStarted(start_time=timestamp(start_ns))
            self.reports.updates(self.pool, [AttemptUpdate(key=attempt.key, started=started)], forgotten)

    def _end(self, attempt: PrefixAttempt, result: AttemptResult) -> None:
        """Tell the result of an attempt that was started. Its folder goes once that is durable."""
        del self._attempts[attempt.ident]
        self._use(attempt, -1)
        self._tell(
            attempt.ident, result, lambda: self._spawn(self._clear(attempt.folder), f"files of {attempt.folder.path.name}")
        )
        self._start_waiting()

    def _tell(self, ident: Ident, result: AttemptResult, durable: Callable[[], None] = forgotten) -> None:
        self.reports.updates(self.pool, [AttemptUpdate(key=key_of(ident), finished=result)], durable)

    def _tell_soon(self, ident: Ident, result: AttemptResult) -> None:
        """Tell a result on the next turn of the event loop, because the driver is just calling."""
        asyncio.get_running_loop().call_soon(self._tell, ident, result)

    def _spawn(self, work: Coroutine[Any, Any, None], name: str) -> None:
        """Let an asyncio task do `work`; `close` cancels it."""
        if self._closed:
            work.close()  # the next coordinator sees to it
            return
        task = asyncio.create_task(work, name=f"{name} of {self.pool}")
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("pool %s: %s failed", self.pool, task.get_name(), exc_info=error)
