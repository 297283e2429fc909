"""What is done on one connection to an SSH target, from its making until it breaks.

`target.py` opens one whenever it has none. Three shells (`shell.py`) serve it, however many tasks run there:

    starting   is told to start and to stop; wardens tell on its output of starts and ends, at once
    fetching   ends what attempts left behind, gives their output, removes folders whose results are durable; in batches
    watching   is asked after attempts that this connection's shells did not start, and for output of those that run

An attempt's files on the target are the truth, what wardens tell is only sooner. Nothing here outlives the connection: what is
not done by then, the next one does.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import aclosing, asynccontextmanager
from itertools import islice
from typing import TYPE_CHECKING

from daggyr.attempts.kept import CHUNK_BYTES
from daggyr.attempts.keys import ident_in, key_of
from daggyr.attempts.outcome import without_process
from daggyr.attempts.startable import NotStartable, refusal
from daggyr.bounds import MAX_UNITS
from daggyr.v1.task_pb2 import (
    KILLED,
    LOST,
    REJECTED,
    RETURNED,
    STDOUT,
    AttemptResult,
    AttemptUpdate,
    OutputChunk,
)
from daggyr_server.executors.ssh.attempts import Attempt, Phase
from daggyr_server.executors.ssh.connection import TargetFault, connect
from daggyr_server.executors.ssh.output import Output
from daggyr_server.executors.ssh.questions import Questions
from daggyr_server.executors.ssh.results import result_of
from daggyr_server.executors.ssh.script import (
    Ended,
    call,
    centiseconds,
    needs_in,
    parse_ended,
    start_script,
)
from daggyr_server.executors.ssh.shell import Shell

if TYPE_CHECKING:
    from daggyr_server.executors.ssh.target import Target

LOOK_SECONDS = 0.5  # between looks at attempts whose wardens cannot tell of their end
LATE_LOOK_SECONDS = 10.0  # at all others: a warden may have been killed
MISSED_LOOKS = 3  # then an attempt is LOST; one a LOST_LOOK_SECONDS
PEEK_SECONDS = 0.1
_NAMES_A_CALL = 128  # so that calls, and what they start, stay far below what execve(2) takes
_STARTS_A_SCRIPT = 32
_FOLDERS_AHEAD = 64
_LONGEST_GATHERING = 0.1  # seconds
_MAX_SCRIPT = 256 * 1024
_MAX_UNDURABLE = 8 * 1024 * 1024  # bytes of output that the driver has and has not made durable
_CENTISECOND_NS = 10_000_000


class Session:
    """Life: `opened`, `take_up`, `work`; meanwhile `wake`, `stop` and `peek`."""

    def __init__(self, target: Target, starting: Shell, fetching: Shell, watching: Shell, ready: list[str]) -> None:
        """`ready` are the words of READY. Raises TargetFault."""
        self._target = target
        self._starting = starting
        self._fetching = Questions(fetching)
        self._watching = Questions(watching)
        self._stops: list[Attempt] = []
        self._wake_send = asyncio.Event()
        self._wake_fetch = asyncio.Event()
        self._wake_watch = asyncio.Event()
        self._undurable = 0
        self._tidied = False
        try:
            uptime, self._boot, cores, memory_kb = ready
            self._boot_ns = time.time_ns() - centiseconds(uptime) * _CENTISECOND_NS
            target.resources(min(MAX_UNITS, int(cores)), min(MAX_UNITS, int(memory_kb) // 1024))
        except ValueError:
            raise TargetFault(f"it said something that is not understood: {' '.join(ready)[:200]}") from None

    @classmethod
    @asynccontextmanager
    async def opened(cls, target: Target) -> AsyncIterator[Session]:
        """Connect and start the shells; they end with the connection. Raises TargetFault."""
        ours, settings = target.context, target.settings
        connection = await connect(target.target, settings, ours.heartbeat)
        try:
            hello = [str(ours.epoch), secrets.token_hex(8), _without_home(settings.directory), target.folder]
            hello.append(_without_home(settings.working_directory))
            starting, ready = await Shell.opened(connection, hello=[*hello, "take"])
            (fetching, _), (watching, _) = await asyncio.gather(*(Shell.opened(connection, hello=[*hello, ""]) for _ in range(2)))
            yield cls(target, starting, fetching, watching, ready)
        finally:
            connection.abort()
            with contextlib.suppress(Exception):
                await connection.wait_closed()

    # -- what the target asks

    def wake(self) -> None:
        """Attempts wait, or folders may go."""
        self._wake_send.set()
        if self._target.droppable:
            self._wake_fetch.set()
        if not self._tidied:
            self._wake_watch.set()

    def stop(self, attempts: Iterable[Attempt]) -> None:
        """End these; what was sent before is started first, so that there is something to end."""
        self._stops += attempts
        self._wake_send.set()

    async def peek(self, attempt: Attempt, stream: int, offset: int) -> OutputChunk | None:
        """Output from `offset` on, perhaps nothing so far; None when there will be no more."""
        if attempt.phase is Phase.ENDED:
            return None
        data = b""
        if attempt.phase is Phase.RUNNING:
            name = f"{attempt.name}/{'stdout' if stream == STDOUT else 'stderr'}"
            try:
                async with aclosing(self._watching.ask(call("dg_peek", name, str(offset), str(CHUNK_BYTES)))) as answers:
                    async for words in answers:
                        if words[0] == "P":
                            offset = int(words[1])
                            data = b"".join([piece async for piece in self._watching.shell.block()])
            except (TargetFault, ValueError):
                return None
        if not data:
            await asyncio.sleep(PEEK_SECONDS)
        return OutputChunk(stream=stream, offset=offset, data=data[:CHUNK_BYTES])  # type: ignore[arg-type]

    # -- work

    async def take_up(self) -> None:
        """Find out what became of attempts of earlier connections and coordinators. Raises TargetFault."""
        attempts = self._target.attempts
        await self._look(attempts.in_phase(Phase.PLACED, Phase.SENT, Phase.RUNNING), claim=True)
        self._stops = [attempt for attempt in attempts.in_phase(Phase.RUNNING, Phase.SENT) if attempt.stopping]

    async def work(self) -> None:
        """Do all there is to do, until the connection breaks. Raises TargetFault."""
        self._wake_send.set()
        self._wake_fetch.set()
        try:
            async with asyncio.TaskGroup() as group:
                for doing in (self._hear, self._send, self._fetch, self._watch):
                    group.create_task(doing(), name=f"{doing.__name__} {self._target.name}")
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None

    async def _send(self) -> None:
        """Start what fits and stop what is to be stopped, in that order."""
        while True:
            await self._wake_send.wait()
            self._wake_send.clear()
            while batch := self._next_batch():
                script = self._folders([attempt for attempt, _ in batch]) + "".join(script for _, script in batch)
                await self._starting.send(script.encode())
            stops, self._stops = self._stops, []
            for names in _batches([attempt.name for attempt in stops]):
                await self._starting.send(call("dg_stop", *names).encode())

    def _folders(self, batch: Sequence[Attempt]) -> str:
        """The call that makes folders for these and for those that come next: one program is started for many."""
        if all(attempt.has_folder for attempt in batch):
            return ""
        ahead = [attempt for attempt in islice(self._target.attempts.waiting, _FOLDERS_AHEAD) if not attempt.has_folder]
        made = [attempt for attempt in batch if not attempt.has_folder] + ahead
        for attempt in made:
            attempt.has_folder = True
        return call("dg_new", *(attempt.name for attempt in made))

    def _next_batch(self) -> list[tuple[Attempt, str]]:
        batch: list[tuple[Attempt, str]] = []
        size = 0
        while len(batch) < _STARTS_A_SCRIPT and size < _MAX_SCRIPT and (attempt := self._target.attempts.next()):
            assert attempt.spec is not None
            grace = self._target.context.grace
            try:
                script = start_script(attempt.name, attempt.ident, attempt.task_id, attempt.spec, grace)
            except NotStartable as error:
                self._target.attempts.forget(attempt)
                self._target.tell_soon([attempt.ident], REJECTED, str(error))
                continue
            attempt.sent_ns = time.time_ns()
            attempt.attended = True
            batch.append((attempt, script))
            size += len(script)
        return batch

    async def _hear(self) -> None:
        """What wardens tell."""
        while True:
            kind, _, rest = (await self._starting.line()).partition(" ")
            words = rest.split(" ")
            attempt = self._attempt(words[0])
            if attempt is None or words[-1] != ".":
                continue
            if kind == "S":
                self._runs(attempt, words[1])
            elif kind == "E":
                self._ended(attempt, words[1:])
            elif kind == "H":  # by an earlier coordinator, which this driver does not know of
                attempt.attended = False
                self._wake_watch.set()
            elif kind == "N":
                self._target.tell_results([(attempt, without_process(LOST, "its target cannot make files for it"))])
                raise TargetFault("it cannot make files for attempts: is its disk full?")

    async def _fetch(self) -> None:
        """Tell the results of what has ended, and remove folders."""
        while True:
            await self._wake_fetch.wait()
            self._wake_fetch.clear()
            target = self._target
            while target.attempts.ended or target.droppable:
                target.droppable += target.attempts.unused
                target.attempts.unused.clear()
                began = time.monotonic()
                await self._fetch_some(list(islice(target.attempts.ended, _NAMES_A_CALL)))
                if target.attempts.waiting:
                    # A look at all processes is dear, and the target busy: half of the time belongs to what waits.
                    await asyncio.sleep(min(2 * (time.monotonic() - began), _LONGEST_GATHERING))

    async def _fetch_some(self, batch: list[Attempt]) -> None:
        target = self._target
        dropped = target.droppable[:_NAMES_A_CALL]
        script = call("dg_drop", *dropped) if dropped else ""
        wanted = [f"{attempt.name}/{stream}" for attempt in batch for stream in _wanted_of(attempt)]
        if batch:
            script += call("dg_clear", *(attempt.name for attempt in batch))
        for names in _batches(wanted):
            script += call("dg_give", *names)
        by_name = {attempt.name: attempt for attempt in batch}
        results = {attempt.name: self._result(attempt) for attempt in batch}
        async with aclosing(self._fetching.ask(script)) as answers:
            async for words in answers:
                if words[0] == "O":
                    try:
                        output = Output(words[1:])
                        await self._take_output(by_name[output.attempt], results[output.attempt], output)
                    except (ValueError, KeyError):
                        raise TargetFault("its shell said something that is not understood") from None
        target.droppable = target.droppable[len(dropped) :]
        told = []
        for attempt in batch:
            if attempt in target.attempts.ended:  # it was not given up meanwhile
                target.attempts.ended.remove(attempt)
                told.append((attempt, results[attempt.name]))
        if told:
            target.tell_results(told)

    def _result(self, attempt: Attempt) -> AttemptResult:
        ended = _ended_of(attempt)
        if ended.refused:
            return without_process(REJECTED)
        return result_of(ended, *self._times(attempt, ended))

    async def _take_output(self, attempt: Attempt, result: AttemptResult, output: Output) -> None:
        """Read a stream's block and pass it on, as fast as the driver makes it durable; or why the attempt was not started."""
        shell, key = self._fetching.shell, key_of(attempt.ident)
        if result.outcome == REJECTED:
            result.notes.append(refusal(b"".join([piece async for piece in shell.block()])))
            return
        async for piece in shell.block():
            while self._undurable > _MAX_UNDURABLE:
                await asyncio.sleep(0.01)
            updates = [AttemptUpdate(key=key, output=chunk) for chunk in output.chunks(piece)]
            self._tell_output(updates, len(piece))
        (result.stdout if output.stream == STDOUT else result.stderr).CopyFrom(output.summary())

    def _tell_output(self, updates: Sequence[AttemptUpdate], size: int) -> None:
        def durable() -> None:
            self._undurable -= size

        self._undurable += size
        self._target.tell_output(updates, durable)

    async def _watch(self) -> None:
        """Look after attempts whose wardens cannot tell this connection of their end, and now and then after all."""
        late = time.monotonic() + LATE_LOOK_SECONDS
        while True:
            attempts = self._target.attempts.in_phase(Phase.PLACED, Phase.SENT, Phase.RUNNING)
            # What was sent on this connection and was not begun yet has no folder perhaps.
            attempts = [attempt for attempt in attempts if not (attempt.phase is Phase.SENT and attempt.attended)]
            if time.monotonic() < late:
                attempts = [attempt for attempt in attempts if not attempt.attended or attempt.missed]
            else:
                late = time.monotonic() + LATE_LOOK_SECONDS
            await self._look(attempts, claim=False)
            if self._target.may_tidy and not self._tidied:
                self._tidied = True
                await self._tidy()
            seconds = LOOK_SECONDS if attempts else late - time.monotonic()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(seconds, LOOK_SECONDS)):
                    await self._wake_watch.wait()
                    self._wake_watch.clear()
                    await asyncio.sleep(LOOK_SECONDS / 5)

    async def _look(self, attempts: Sequence[Attempt], *, claim: bool) -> None:
        """See what became of attempts; `claim`: one that was not started yet will not be any more."""
        by_name = {attempt.name: attempt for attempt in attempts}
        for names in _batches(list(by_name)):
            for kind, name, *words in await self._watching.answers(call("dg_look", "claim" if claim else "", *names)):
                attempt = by_name.get(name)
                if attempt is not None and attempt.phase is not Phase.ENDED and words[-1:] == ["."]:
                    await self._looked(attempt, kind, words)

    async def _looked(self, attempt: Attempt, kind: str, words: list[str]) -> None:
        if kind == "E":
            if not attempt.attended or attempt.missed:  # else its warden is about to say so
                self._ended(attempt, words)
            attempt.missed += 1
        elif kind == "R":
            attempt.missed = 0
            if attempt.phase is not Phase.RUNNING:
                self._target.attempts.took_up(attempt, needs_in(words[1:-1]))
                if attempt.stopping:
                    self.stop([attempt])
        elif kind == "A":
            outcome, note = (LOST, "it was never started on its target") if attempt.phase is Phase.PLACED else (RETURNED, "")
            if attempt.stopping:
                outcome, note = KILLED, ""
            self._target.tell_results([(attempt, without_process(outcome, *filter(None, [note])))])
        elif kind in ("X", "G"):
            attempt.missed += 1
            if attempt.missed > MISSED_LOOKS:
                await self._watching.answers(call("dg_bury", attempt.name))
                note = (
                    "its folder was removed"
                    if kind == "G"
                    else "its target was started again, or what waits for its end was killed"
                )
                self._target.tell_results([(attempt, without_process(LOST, f"nothing is known of its end: {note}"))])

    async def _tidy(self) -> None:
        """End what nobody wants any more, and remove what is durable."""
        names = [words[1] for words in await self._watching.answers("dg_all\n") if words[0] == "D" and len(words) == 3]
        target = self._target
        kept = set(target.droppable)
        unknown = []
        for name in names:
            ident = ident_in(name)
            if ident is not None and not (ident in target.attempts.held or ident in target.told or name in kept):
                unknown.append(name)
        for some in _batches(unknown):
            await self._watching.answers(call("dg_bury", *some) + call("dg_drop", *some))

    # -- what became of an attempt

    def _attempt(self, name: str) -> Attempt | None:
        ident = ident_in(name)
        attempt = self._target.attempts.held.get(ident) if ident is not None else None
        return attempt if attempt is not None and attempt.phase is not Phase.ENDED else None

    def _runs(self, attempt: Attempt, uptime: str) -> None:
        self._target.attempts.took_up(attempt, attempt.needs)
        since_boot = centiseconds(uptime) * _CENTISECOND_NS
        self._boot_ns = min(self._boot_ns, time.time_ns() - since_boot)  # what came soonest tells best
        start_ns = self._boot_ns + since_boot
        self._target.tell_started(attempt, max(start_ns, attempt.sent_ns))

    def _ended(self, attempt: Attempt, words: list[str]) -> None:
        try:
            ended = parse_ended(words)
        except ValueError:
            raise TargetFault(f"its shell said something that is not understood: {' '.join(words)[:200]}") from None
        self._target.attempts.end(attempt, ended)
        self._wake_fetch.set()
        self._wake_send.set()

    def _times(self, attempt: Attempt, ended: Ended) -> tuple[int, int]:
        """Start and stop by this host's clock, in nanoseconds: targets' clocks may be wrong, and theirs since boot is coarse."""
        now = time.time_ns()
        took = max(0, ended.ended - ended.began) * _CENTISECOND_NS
        if ended.boot and ended.boot != self._boot:
            return now - took, now
        start = max(self._boot_ns + ended.began * _CENTISECOND_NS, attempt.sent_ns)
        stop = min(start + took, now)
        return min(max(stop - took, attempt.sent_ns), stop), stop


def _ended_of(attempt: Attempt) -> Ended:
    assert attempt.ended is not None
    return attempt.ended


def _wanted_of(attempt: Attempt) -> tuple[str, ...]:
    """Which files of an attempt that has ended tell more of it."""
    ended = _ended_of(attempt)
    return ("refused",) if ended.refused else ended.streams


def _batches(names: Sequence[str]) -> Iterator[Sequence[str]]:
    for begin in range(0, len(names), _NAMES_A_CALL):
        yield names[begin : begin + _NAMES_A_CALL]


def _without_home(folder: str) -> str:
    """A folder of the target's as it is to be said there: relative ones count from home anyway."""
    return folder.removeprefix("~/") if folder != "~" else "."
