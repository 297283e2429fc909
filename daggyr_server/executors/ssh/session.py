"""One connection to an SSH target, from its making until it breaks: three shells, and what is done on each.

`target.py` opens one whenever it has none. Three shells serve it, however many tasks run there, each with a module of its own:

    starting   is told to start and to stop; wardens tell on its output of starts and ends, at once
    fetching   ends what attempts left behind, gives their output, removes folders whose results are durable; in batches
    watching   is asked after attempts that this connection's shells did not start, and for output of those that run

An attempt's files on the target are the truth; what wardens tell only comes sooner. Nothing here outlives the connection: what is
not done by then, the next one does.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from daggyr.bounds import MAX_UNITS
from daggyr.v1.task_pb2 import OutputChunk
from daggyr_server.executors.context import ExecutorContext
from daggyr_server.executors.seen_starts import SeenStart, behind
from daggyr_server.executors.ssh.attempts import TargetAttempt, TargetAttempts
from daggyr_server.executors.ssh.clock import TargetClock
from daggyr_server.executors.ssh.connection import TargetFault, connect
from daggyr_server.executors.ssh.fetching import Fetching
from daggyr_server.executors.ssh.questions import Questions
from daggyr_server.executors.ssh.script import parse_ended
from daggyr_server.executors.ssh.settings import SshSettings, TargetSettings
from daggyr_server.executors.ssh.shell import Shell
from daggyr_server.executors.ssh.starting import Starting
from daggyr_server.executors.ssh.telling import Telling
from daggyr_server.executors.ssh.watching import LookingAfter

_WORDS_OF_A_HOST = 4  # in READY: uptime, boot, cores, memory; the fence of the connection before follows
ROOM_SECONDS = 2.0  # between two looks whether a target whose disk is full has room again


@dataclass(frozen=True, slots=True)
class TargetPlace:
    """Where a connection goes, and which folder there is the pool's."""

    target: TargetSettings
    settings: SshSettings
    context: ExecutorContext
    folder: str


class TargetSession:
    """Life: `opened`, `take_up`, `work`; meanwhile `wake`, `stop` and `peek`."""

    def __init__(
        self,
        place: TargetPlace,
        attempts: TargetAttempts,
        telling: Telling,
        shells: tuple[Shell, Shell, Shell],
        ready: list[str],
        said: list[str],
        room_changed: Callable[[str, float], None],
    ) -> None:
        """`ready` are the words of READY, and `said` those of TAKEN. Raises TargetFault.

        `room_changed` is told why the target can keep no files, or an empty text when it can again, and the seconds between two
        looks.
        """
        try:
            uptime, boot, cores, memory_kb, *_ = ready
            clock = TargetClock(uptime, boot)
            self.cores = min(MAX_UNITS, int(cores))
            self.memory_mb = min(MAX_UNITS, int(memory_kb) // 1024)
        except ValueError:
            raise _not_understood(ready) from None
        starting, fetching, watching = shells
        self.full = _no_room(said) if said else ""  # why the target can keep no files, if that is so
        self._room_changed = room_changed
        self._look_for_room = asyncio.Event()
        if self.full:
            self._look_for_room.set()
        self._name = place.target.known_as
        self._attempts = attempts
        self._telling = telling
        self._fetching = Fetching(Questions(fetching), attempts, telling, clock)
        self._watching = LookingAfter(Questions(watching), attempts, telling, ended=self._ended, stop=self.stop)
        self._starting = Starting(
            starting,
            attempts,
            telling,
            clock,
            place.context.grace,
            ended=self._ended,
            look=self._watching.wake.set,
            filled=self._filled,
        )
        self._starting.paused = bool(self.full)

    @classmethod
    @asynccontextmanager
    async def opened(
        cls, place: TargetPlace, attempts: TargetAttempts, telling: Telling, room_changed: Callable[[str, float], None]
    ) -> AsyncIterator[TargetSession]:
        """Connect and start the shells; they end with the connection. Raises TargetFault."""
        context, settings = place.context, place.settings
        connection = await connect(place.target, settings, context.heartbeat)
        try:
            fence = f"{context.epoch} {secrets.token_hex(8)} {context.tracker_id} {context.life}"
            hello = [fence, _without_home(settings.directory), place.folder, _without_home(settings.working_directory)]
            starting, ready = await Shell.opened(connection, hello=hello)
            if reason := behind(_seen(ready[_WORDS_OF_A_HOST:]), context, f"target {place.target.known_as!r}"):
                raise TargetFault(reason)
            said = await starting.called("dg_take", answer="TAKEN")
            (fetching, _), (watching, _) = await asyncio.gather(*(Shell.opened(connection, hello=hello) for _ in range(2)))
            yield cls(place, attempts, telling, (starting, fetching, watching), ready, said, room_changed)
        finally:
            connection.abort()
            with contextlib.suppress(Exception):
                await connection.wait_closed()

    # -- what the target asks for

    def wake(self) -> None:
        """Attempts wait, or folders may go."""
        self._starting.wake.set()
        if self._telling.droppable:
            self._fetching.wake.set()
        if not self._watching.tidied:
            self._watching.wake.set()

    def stop(self, attempts: Iterable[TargetAttempt]) -> None:
        """Have these ended."""
        self._starting.stop(attempts)

    async def peek(self, attempt: TargetAttempt, stream: int, offset: int) -> OutputChunk | None:
        """Output of an attempt from `offset` on, perhaps nothing so far; None when there will be no more."""
        return await self._watching.peek(attempt, stream, offset)

    async def take_up(self) -> None:
        """Find out what became of the attempts of earlier connections and coordinators. Raises TargetFault."""
        await self._watching.take_up()

    async def work(self) -> None:
        """Do all there is to do, until the connection breaks. Raises TargetFault."""
        self._starting.wake.set()
        self._fetching.wake.set()
        works = {
            "send": self._starting.send,
            "hear": self._starting.hear,
            "fetch": self._fetching.work,
            "watch": self._watching.work,
            "room": self._watch_room,
        }
        try:
            async with asyncio.TaskGroup() as group:
                for name, work in works.items():
                    group.create_task(work(), name=f"{name} {self._name}")
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None

    def _ended(self, attempt: TargetAttempt, words: list[str]) -> None:
        """Take the words of an E line. Raises TargetFault."""
        try:
            ended = parse_ended(words)
        except ValueError:
            raise _not_understood(words) from None
        if ended.full:
            self._filled("")
        self._attempts.end(attempt, ended)
        self._fetching.wake.set()
        self._starting.wake.set()

    def _filled(self, words: str) -> None:
        """The target could not keep a file. Nothing is started there until it can."""
        if not self.full:
            self.full = _no_room([words])
            self._starting.paused = True
            self._room_changed(self.full, ROOM_SECONDS)
            self._look_for_room.set()

    async def _watch_room(self) -> None:
        """While the target can keep no files, look whether it can again. Raises TargetFault."""
        while True:
            await self._look_for_room.wait()
            self._look_for_room.clear()
            while self.full:
                await asyncio.sleep(ROOM_SECONDS)
                lacking = await self._watching.lacking_room()
                if lacking is None:
                    self.full = ""
                    self._starting.paused = False
                    self._starting.wake.set()
                    self._room_changed("", ROOM_SECONDS)
                elif lacking and self.full != _no_room([lacking]):  # what could not keep a file has not said why
                    self.full = _no_room([lacking])
                    self._room_changed(self.full, ROOM_SECONDS)

    async def leave(self) -> None:
        """Remove the folders whose results are durable, and the pool's own if nothing is left in it. Raises TargetFault."""
        await self._watching.leave()


def _no_room(words: list[str]) -> str:
    """Why a target can keep no files, in its own words, if it has some."""
    said = " ".join(words).strip()
    return f"it cannot keep the files of attempts{f': {said}' if said else ''}"


def _seen(fence: list[str]) -> SeenStart:
    """The start of the connection that was here last, by the words of its fence: a version without lives had two."""
    epoch, _, tracker_id, life, *_ = [*fence, "", "", "", ""]
    return SeenStart(tracker_id, _number(epoch), _number(life))


def _number(word: str) -> int:
    return int(word) if word.isascii() and word.isdecimal() and len(word) < 20 else 0


def _not_understood(words: list[str]) -> TargetFault:
    return TargetFault(f"its shell said something that is not understood: {' '.join(words)[:200]}")


def _without_home(folder: str) -> str:
    """A folder of the target's as it is to be said there, where relative ones count from home anyway."""
    return folder.removeprefix("~/") if folder != "~" else "."
