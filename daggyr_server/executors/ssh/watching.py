"""Looks after the attempts on a target whose end no warden tells this connection, and gives the output of those that run.

`session.py` makes one for each connection, has it `take_up` what earlier connections and coordinators left, and runs `work`. Now
and then it looks after all attempts, because a warden may have been killed. It ends what nobody wants any more.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import aclosing

from daggyr.attempts.kept import CHUNK_BYTES
from daggyr.attempts.keys import ident_in
from daggyr.attempts.outcome import without_process
from daggyr.v1.task_pb2 import KILLED, LOST, RETURNED, STDOUT, OutputChunk
from daggyr_server.executors.ssh.attempts import AttemptPhase, TargetAttempt, TargetAttempts
from daggyr_server.executors.ssh.connection import TargetFault
from daggyr_server.executors.ssh.questions import Questions
from daggyr_server.executors.ssh.script import batches, call, needs_in
from daggyr_server.executors.ssh.telling import Telling

LOOK_SECONDS = 0.5  # between looks at attempts whose wardens cannot tell of their end
LATE_LOOK_SECONDS = 10.0  # between looks at all others
MISSED_LOOKS = 3  # in a row that found neither a warden nor a result; at the next one the attempt is LOST
PEEK_SECONDS = 0.1  # between looks at output that is followed and did not grow


class LookingAfter:
    """Life: made, `take_up`, `work`; meanwhile `peek`, and `wake` is set when there is something to look at."""

    def __init__(
        self,
        questions: Questions,
        attempts: TargetAttempts,
        telling: Telling,
        *,
        ended: Callable[[TargetAttempt, list[str]], None],
        stop: Callable[[Iterable[TargetAttempt]], None],
    ) -> None:
        """`ended` takes the words of an E line; `stop` has attempts ended."""
        self.wake = asyncio.Event()
        self.tidied = False  # what nobody wants any more was ended
        self._questions = questions
        self._attempts = attempts
        self._telling = telling
        self._ended = ended
        self._stop = stop

    async def take_up(self) -> None:
        """Find out what became of the attempts of earlier connections and coordinators. Raises TargetFault."""
        attempts = self._attempts
        await self._look(attempts.in_phase(AttemptPhase.PLACED, AttemptPhase.SENT, AttemptPhase.RUNNING), claim=True)
        self._stop([attempt for attempt in attempts.in_phase(AttemptPhase.RUNNING, AttemptPhase.SENT) if attempt.stopping])

    async def work(self) -> None:
        """Look after attempts, at intervals. Raises TargetFault."""
        late = time.monotonic() + LATE_LOOK_SECONDS
        while True:
            attempts = self._attempts.in_phase(AttemptPhase.PLACED, AttemptPhase.SENT, AttemptPhase.RUNNING)
            # What was sent on this connection and has not begun yet may have no folder.
            attempts = [attempt for attempt in attempts if not (attempt.phase is AttemptPhase.SENT and attempt.attended)]
            if time.monotonic() < late:
                attempts = [attempt for attempt in attempts if not attempt.attended or attempt.missed]
            else:
                late = time.monotonic() + LATE_LOOK_SECONDS
            await self._look(attempts, claim=False)
            if self._attempts.complete and not self.tidied:
                self.tidied = True
                await self._tidy()
            seconds = LOOK_SECONDS if attempts else late - time.monotonic()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(seconds, LOOK_SECONDS)):
                    await self.wake.wait()
                    self.wake.clear()
                    await asyncio.sleep(LOOK_SECONDS / 5)

    async def peek(self, attempt: TargetAttempt, stream: int, offset: int) -> OutputChunk | None:
        """Output of an attempt from `offset` on, perhaps nothing so far; None when there will be no more."""
        if attempt.phase is AttemptPhase.ENDED:
            return None
        data = b""
        if attempt.phase is AttemptPhase.RUNNING:
            name = f"{attempt.name}/{'stdout' if stream == STDOUT else 'stderr'}"
            try:
                async with aclosing(self._questions.ask(call("dg_peek", name, str(offset), str(CHUNK_BYTES)))) as answers:
                    async for words in answers:
                        if words[0] == "P":
                            offset = int(words[1])
                            data = b"".join([piece async for piece in self._questions.shell.block()])
            except (TargetFault, ValueError):
                return None
        if not data:
            await asyncio.sleep(PEEK_SECONDS)
        return OutputChunk(stream=stream, offset=offset, data=data[:CHUNK_BYTES])  # type: ignore[arg-type]

    async def lacking_room(self) -> str | None:
        """Why the target can keep no files, in its own words, empty if it has none; None if it can. Raises TargetFault."""
        for words in await self._questions.answers("dg_room\n"):
            if words == ["K", "."]:
                return None
            if words[0] == "F":
                return " ".join(words[1:-1]).strip()
        return ""

    async def leave(self) -> None:
        """Remove folders whose results are durable, and the pool's own if nothing else is in it. Raises TargetFault."""
        for names in batches([*self._telling.droppable, *self._attempts.unused]):
            await self._questions.answers(call("dg_drop", *names))
        await self._questions.answers("dg_leave_pool\n")

    async def _look(self, attempts: Sequence[TargetAttempt], *, claim: bool) -> None:
        """See what became of attempts. With `claim`, one that was not started yet never will be."""
        by_name = {attempt.name: attempt for attempt in attempts}
        for names in batches(list(by_name)):
            for kind, name, *words in await self._questions.answers(call("dg_look", "claim" if claim else "", *names)):
                attempt = by_name.get(name)
                if attempt is not None and attempt.phase is not AttemptPhase.ENDED and words[-1:] == ["."]:
                    await self._looked(attempt, kind, words)

    async def _looked(self, attempt: TargetAttempt, kind: str, words: list[str]) -> None:
        """Take one answer of dg_look, which says what each kind means."""
        if kind == "E":
            if not attempt.attended or attempt.missed:  # otherwise its warden is about to say so
                self._ended(attempt, words)
            attempt.missed += 1
        elif kind == "R":
            attempt.missed = 0
            if attempt.phase is not AttemptPhase.RUNNING:
                self._attempts.took_up(attempt, needs_in(words[1:-1]))
                if attempt.stopping:
                    self._stop([attempt])
        elif kind == "A":
            outcome, notes = (
                (LOST, ["nothing of it is on its target: it was never started there, or another coordinator took its result"])
                if attempt.phase is AttemptPhase.PLACED
                else (RETURNED, [])
            )
            if attempt.stopping:
                outcome, notes = KILLED, []
            self._telling.results([(attempt, without_process(outcome, *notes))])
        elif kind in ("X", "G"):
            attempt.missed += 1
            if attempt.missed > MISSED_LOOKS:
                await self._questions.answers(call("dg_bury", attempt.name))
                why = (
                    "its target was started again, or what waits for its end was killed"
                    if kind == "X"
                    else "its folder was removed"
                )
                self._telling.results([(attempt, without_process(LOST, f"nothing is known of its end: {why}"))])

    async def _tidy(self) -> None:
        """End the attempts that nobody wants any more, and remove their folders."""
        names = [words[1] for words in await self._questions.answers("dg_all\n") if words[0] == "D" and len(words) == 3]
        droppable = set(self._telling.droppable)
        unknown = []
        for name in names:
            ident = ident_in(name)
            known = ident in self._attempts.held or ident in self._telling.undurable or name in droppable
            if ident is not None and not known:
                unknown.append(name)
        for some in batches(unknown):
            await self._questions.answers(call("dg_bury", *some) + call("dg_drop", *some))
