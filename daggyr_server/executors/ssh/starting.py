"""Starts attempts on a target, asks wardens to end them, and hears at once what wardens tell.

`session.py` makes one for each connection and runs `send` and `hear`. The shell that it speaks to is the parent of the wardens,
whose lines come on the shell's output. Nothing here waits for an attempt.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Sequence
from itertools import islice

from daggyr.attempts.keys import ident_in
from daggyr.attempts.outcome import Seen, result_of, without_process
from daggyr.attempts.startable import NotStartable
from daggyr.v1.task_pb2 import REJECTED, RETURNED
from daggyr_server.executors.ssh.attempts import AttemptPhase, TargetAttempt, TargetAttempts
from daggyr_server.executors.ssh.clock import TargetClock
from daggyr_server.executors.ssh.connection import TargetFault
from daggyr_server.executors.ssh.script import NAMES_A_CALL, batches, call, start_script
from daggyr_server.executors.ssh.shell import Shell
from daggyr_server.executors.ssh.telling import Telling

_STARTS_A_SCRIPT = 32
_FOLDERS_AHEAD = 64
_MAX_SCRIPT = 256 * 1024  # bytes; one attempt's may be longer

assert _STARTS_A_SCRIPT + _FOLDERS_AHEAD <= NAMES_A_CALL


class Starting:
    """Life: made, `send` and `hear` side by side; meanwhile `stop`, and `wake` is set when attempts wait."""

    def __init__(
        self,
        shell: Shell,
        attempts: TargetAttempts,
        telling: Telling,
        clock: TargetClock,
        grace: float,
        *,
        ended: Callable[[TargetAttempt, list[str]], None],
        look: Callable[[], None],
        filled: Callable[[str], None],
    ) -> None:
        """`ended` takes the words of an E line; `look` asks for a look at attempts that are not this connection's.

        `filled` is told that the target could not keep a file.
        """
        self.wake = asyncio.Event()
        self.paused = False  # nothing is started
        self._shell = shell
        self._attempts = attempts
        self._telling = telling
        self._clock = clock
        self._grace = grace
        self._ended = ended
        self._look = look
        self._filled = filled
        self._stops: list[TargetAttempt] = []

    def stop(self, attempts: Iterable[TargetAttempt]) -> None:
        """Have these ended. What was sent before is started first, so that there is something to end."""
        self._stops += attempts
        self.wake.set()

    async def send(self) -> None:
        """Start what fits and stop what is to be stopped, in that order. Raises TargetFault."""
        while True:
            await self.wake.wait()
            self.wake.clear()
            while not self.paused and (batch := self._next_batch()):
                script = self._folders([attempt for attempt, _ in batch]) + "".join(script for _, script in batch)
                await self._shell.send(script.encode())
            stops, self._stops = self._stops, []
            for names in batches([attempt.name for attempt in stops]):
                await self._shell.send(call("dg_stop", *names).encode())

    async def hear(self) -> None:
        """Take what wardens tell. Raises TargetFault."""
        while True:
            kind, _, rest = (await self._shell.line()).partition(" ")
            words = rest.split(" ")
            attempt = self._attempt(words[0])
            if attempt is None or words[-1] != ".":
                continue
            if kind == "S":
                self._attempts.took_up(attempt, attempt.needs)
                self._telling.started(attempt, self._clock.start_ns(words[1], attempt.sent_ns))
            elif kind == "E":
                self._ended(attempt, words[1:])
            elif kind == "H":
                # An earlier coordinator has started it, which this driver does not know of.
                attempt.attended = False
                self._look()
            elif kind == "N":
                self._refused(attempt, words[1])

    def _refused(self, attempt: TargetAttempt, why: str) -> None:
        """The shell has not started an attempt, and nobody will. Raises TargetFault if that is so for all attempts."""
        if why == "fence":
            self._telling.results([(attempt, without_process(RETURNED))])
            raise TargetFault("a newer connection has taken it over")
        # The target is told to be at fault before the attempt's end is, so that the attempt does not come back here at once.
        self._filled("")
        seen = Seen(host_fault="its target could not keep the files that an attempt needs: is its disk full?")
        self._telling.results([(attempt, result_of(seen))])

    def _attempt(self, name: str) -> TargetAttempt | None:
        ident = ident_in(name)
        attempt = self._attempts.held.get(ident) if ident is not None else None
        return attempt if attempt is not None and attempt.phase is not AttemptPhase.ENDED else None

    def _next_batch(self) -> list[tuple[TargetAttempt, str]]:
        batch: list[tuple[TargetAttempt, str]] = []
        size = 0
        while len(batch) < _STARTS_A_SCRIPT and size < _MAX_SCRIPT and (attempt := self._attempts.next()):
            assert attempt.spec is not None
            try:
                script = start_script(attempt.name, attempt.ident, attempt.task_id, attempt.spec, self._grace)
            except NotStartable as error:
                self._attempts.forget(attempt)
                self._telling.ends_soon([attempt.ident], REJECTED, str(error))
                continue
            attempt.sent_ns = time.monotonic_ns()
            attempt.attended = True
            batch.append((attempt, script))
            size += len(script)
        return batch

    def _folders(self, batch: Sequence[TargetAttempt]) -> str:
        """The call that makes folders for these and for those that come next, so that mkdir(1) is started once for many."""
        if all(attempt.has_folder for attempt in batch):
            return ""
        ahead = [attempt for attempt in islice(self._attempts.waiting, _FOLDERS_AHEAD) if not attempt.has_folder]
        made = [attempt for attempt in batch if not attempt.has_folder] + ahead
        for attempt in made:
            attempt.has_folder = True
        return call("dg_new", *(attempt.name for attempt in made))
