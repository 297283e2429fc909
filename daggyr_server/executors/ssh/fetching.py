"""Fetches what ended attempts have left on a target, their output or why they were not started, and tells their results.

`session.py` makes one for each connection and runs `work`. Before a result is told, what the attempt left running is ended.
Folders whose results are durable are removed. Nothing here looks at an attempt that runs.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import aclosing
from itertools import islice

from daggyr.attempts.outcome import without_process
from daggyr.attempts.startable import refusal
from daggyr.v1.task_pb2 import REJECTED, STDOUT, AttemptResult
from daggyr_server.executors.ssh.attempts import TargetAttempt, TargetAttempts
from daggyr_server.executors.ssh.clock import TargetClock
from daggyr_server.executors.ssh.connection import TargetFault
from daggyr_server.executors.ssh.output import Output
from daggyr_server.executors.ssh.questions import Questions
from daggyr_server.executors.ssh.results import result_of
from daggyr_server.executors.ssh.script import NAMES_A_CALL, Ended, batches, call
from daggyr_server.executors.ssh.telling import Telling

_LONGEST_GATHERING = 0.1  # seconds
_MAX_UNDURABLE = 8 * 1024 * 1024  # bytes of output that the driver has and has not made durable


class Fetching:
    """Life: made, `work`; meanwhile `wake` is set when attempts have ended or folders may go."""

    def __init__(self, questions: Questions, attempts: TargetAttempts, telling: Telling, clock: TargetClock) -> None:
        self.wake = asyncio.Event()
        self._questions = questions
        self._attempts = attempts
        self._telling = telling
        self._clock = clock
        self._undurable = 0  # bytes

    async def work(self) -> None:
        """Tell the results of what has ended, and remove folders. Raises TargetFault."""
        attempts, telling = self._attempts, self._telling
        while True:
            await self.wake.wait()
            self.wake.clear()
            while attempts.ended or telling.droppable:
                telling.droppable += attempts.unused
                attempts.unused.clear()
                began = time.monotonic()
                await self._fetch(list(islice(attempts.ended, NAMES_A_CALL)))
                if attempts.waiting:
                    # A look at all processes is dear, and the target busy: half of the time belongs to what waits.
                    await asyncio.sleep(min(2 * (time.monotonic() - began), _LONGEST_GATHERING))

    async def _fetch(self, batch: list[TargetAttempt]) -> None:
        telling = self._telling
        dropped = telling.droppable[:NAMES_A_CALL]
        script = call("dg_drop", *dropped) if dropped else ""
        if batch:
            script += call("dg_clear", *(attempt.name for attempt in batch))
        for names in batches([f"{attempt.name}/{file}" for attempt in batch for file in _wanted_of(attempt)]):
            script += call("dg_give", *names)
        by_name = {attempt.name: (attempt, self._result(attempt)) for attempt in batch}
        async with aclosing(self._questions.ask(script)) as answers:
            async for words in answers:
                if words[0] == "O":
                    try:
                        output = Output(words[1:])
                        attempt, result = by_name[output.attempt]
                        await self._take(attempt, result, output)
                    except (ValueError, KeyError):
                        raise TargetFault("its shell said something that is not understood") from None
        del telling.droppable[: len(dropped)]
        told = []
        for attempt, result in by_name.values():
            if result.outcome == REJECTED and not result.notes:
                result.notes.append("it could not be started, and its folder on the target, which told why, was removed")
            if attempt in self._attempts.ended:  # it was not given up meanwhile
                self._attempts.ended.remove(attempt)
                told.append((attempt, result))
        if told:
            telling.results(told)

    def _result(self, attempt: TargetAttempt) -> AttemptResult:
        ended = _ended_of(attempt)
        if ended.refused:
            return without_process(REJECTED)
        return result_of(ended, *self._clock.span_ns(ended, attempt.sent_ns))

    async def _take(self, attempt: TargetAttempt, result: AttemptResult, output: Output) -> None:
        """Read a block: why the attempt was not started, or output, which is passed on as fast as the driver makes it durable."""
        block = self._questions.shell.block()
        if result.outcome == REJECTED:
            result.notes.append(refusal(b"".join([piece async for piece in block])))
            return
        async for piece in block:
            while self._undurable > _MAX_UNDURABLE:
                await asyncio.sleep(0.01)
            self._tell(attempt, output, piece)
        (result.stdout if output.stream == STDOUT else result.stderr).MergeFrom(output.summary())

    def _tell(self, attempt: TargetAttempt, output: Output, piece: bytes) -> None:
        def durable() -> None:
            self._undurable -= len(piece)

        self._undurable += len(piece)
        self._telling.output(attempt, list(output.chunks(piece)), durable)


def _ended_of(attempt: TargetAttempt) -> Ended:
    assert attempt.ended is not None
    return attempt.ended


def _wanted_of(attempt: TargetAttempt) -> tuple[str, ...]:
    """The files that tell more of an attempt that has ended."""
    ended = _ended_of(attempt)
    return ("refused",) if ended.refused else ended.streams
