"""Streams that go on where a connection was lost: the changes of a run, and the output of an attempt.

`Client` calls these. A watch goes on from its last change and an output from its last byte, so that nothing is told twice.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass

import grpc

from daggyr.client.calls import Calls
from daggyr.client.errors import GONE, Unreachable, typed
from daggyr.v1 import runs_pb2 as pb
from daggyr.v1.run_pb2 import RunSummary, State

ENDED = frozenset({State.STATE_COMPLETED, State.STATE_ERRORED, State.STATE_KILLED})


@dataclass(frozen=True, slots=True)
class Change:
    """What a watch tells: the run as it is now, and the tasks that changed since the change before, each once.

    With `missed`, other tasks may have changed too: a program that keeps track of tasks reads them again. The first change has
    it, and so has the one after a gap that the server could no longer fill.
    """

    run: RunSummary
    tasks: Sequence[pb.TaskChange]
    missed: bool


async def changes_of(calls: Calls, request: pb.WatchRunRequest, *, heard: bool) -> AsyncGenerator[Change, None]:
    """The changes until the run has ended.

    `heard` says that the server answered before; then the first call is tried again, too.
    """
    retries = calls.retries()
    missed, ended = True, False
    while not ended:
        stream = calls.stub.WatchRun(request, metadata=calls.metadata)
        try:
            async for message in stream:
                heard, ended = True, message.run.state in ENDED
                request.run_id, request.change_seq = message.run.run_id, message.run.change_seq
                retries.reset()
                yield Change(message.run, message.tasks, missed)
                missed = False
            if not ended:  # a server that goes away may end the stream without an error
                await retries.wait(Unreachable(grpc.StatusCode.UNAVAILABLE, "the server ended the watch"))
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.OUT_OF_RANGE and request.change_seq:
                request.change_seq, missed = 0, True
            elif ended:
                return
            elif heard and error.code() in GONE:
                await retries.wait(typed(error))
            else:
                raise typed(error) from None
        finally:
            stream.cancel()


async def pieces_of(calls: Calls, request: pb.ReadOutputRequest) -> AsyncGenerator[pb.ReadOutputResponse, None]:
    """The pieces of an attempt's output, in order and each once."""
    retries = calls.retries()
    heard = False
    while True:
        stream = calls.stub.ReadOutput(request, metadata=calls.metadata)
        try:
            async for piece in stream:
                heard = True
                request.attempt, request.offset = piece.attempt, piece.offset + len(piece.data)
                retries.reset()
                yield piece
            return
        except grpc.aio.AioRpcError as error:
            if not heard or error.code() not in GONE:
                raise typed(error) from None
            await retries.wait(typed(error))
        finally:
            stream.cancel()
