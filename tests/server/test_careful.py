"""An executor whose code has faults: what it raises is told, its attempts end, and the pools beside it go on."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from typing import Any

import msgspec
import pytest
from drivers import still_driver

from daggyr.v1.task_pb2 import (
    HOST_AVAILABLE,
    SUCCEEDED,
    AssignmentBatch,
    AttemptKey,
    AttemptResult,
    AttemptStarted,
    AttemptUpdate,
    Host,
    OutputChunk,
    Placement,
)
from daggyr_server.core.states import State
from daggyr_server.driver import careful
from daggyr_server.driver.driver import Driver
from daggyr_server.executors.base import Executor, ExecutorError, forgotten
from daggyr_server.executors.context import ExecutorContext
from daggyr_server.spec import decode_json, expand

CONTEXT = ExecutorContext(tracker_id="t", epoch=1, life=1, lease=1.0, heartbeat=1.0, grace=1.0)


class Sound(Executor):
    """Says that all it is given SUCCEEDED, at once."""

    Settings = msgspec.Struct

    def __init__(self, pool: str, driver: Driver) -> None:
        super().__init__(pool, None, driver.reports(pool), CONTEXT)
        self.closed = False
        self.stopped: list[AttemptKey] = []

    async def open(self) -> None:
        self.reports.host(Host(host="h", name="h", state=HOST_AVAILABLE, resources={"cores": 1}))

    def start(self, host: str, batch: AssignmentBatch) -> None:
        self.finish(host, [assignment.key for assignment in batch.assignments])

    def finish(self, host: str, keys: Sequence[AttemptKey]) -> None:
        result = AttemptResult(outcome=SUCCEEDED, exit_code=0)
        self.reports.updates(host, [AttemptUpdate(key=key, finished=result) for key in keys], forgotten)

    def stop(self, host: str, keys: Sequence[AttemptKey]) -> None:
        self.stopped += keys

    def recall(self, host: str, keys: Sequence[AttemptKey]) -> None: ...

    def recover(self, placed: Sequence[tuple[AttemptKey, Placement]]) -> None: ...

    def follow(self, host: str, key: AttemptKey, stream: int, offset: int) -> AsyncIterator[OutputChunk]:
        raise NotImplementedError

    async def close(self) -> None:
        self.closed = True


class Faulty(Sound):
    """Raises in the call that `broken` names."""

    def __init__(self, pool: str, driver: Driver, broken: str) -> None:
        super().__init__(pool, driver)
        self.broken = broken
        self.closings = 0
        self.given = asyncio.Event()

    def _fail(self, call: str) -> None:
        if call == self.broken:
            raise ZeroDivisionError("by its author")

    async def open(self) -> None:
        self._fail("open")
        await super().open()

    def start(self, host: str, batch: AssignmentBatch) -> None:
        if self.broken == "stop":  # What has not started would be recalled.
            started = [AttemptUpdate(key=assignment.key, started=AttemptStarted()) for assignment in batch.assignments]
            self.reports.updates(host, started, self.given.set)
        elif self.broken == "durable":
            result = AttemptResult(outcome=SUCCEEDED, exit_code=0)
            updates = [AttemptUpdate(key=assignment.key, finished=result) for assignment in batch.assignments]
            self.reports.updates(host, updates, lambda: self._fail("durable"))
        else:
            self._fail("start")
            super().start(host, batch)

    def stop(self, host: str, keys: Sequence[AttemptKey]) -> None:
        super().stop(host, keys)
        self._fail("stop")

    def demand(self, ready: int) -> None:
        self._fail("demand")

    async def close(self) -> None:
        if self.broken == "hang":
            self.closings += 1
            await asyncio.Event().wait()
        self._fail("close")
        await super().close()


@pytest.fixture
async def driver() -> AsyncIterator[Driver]:
    made = still_driver("faulty", "sound")
    yield made
    await made.close()


async def submitted(driver: Driver, pool: str) -> int:
    document = msgspec.json.encode({"tasks": {name: {"details": {"command": ["x"]}} for name in "ab"}})
    fields: dict[str, Any] = {"tags": {}, "pool": pool, "parameters": {}, "document": document}
    return await driver.requests.submit(request_id=pool, addition=expand(decode_json(document), default_pool=pool), **fields)


async def ended(driver: Driver, run_id: int) -> State:
    while True:
        seq = driver.changes.seq(run_id)
        run = await driver.reader.find(run_id)
        assert run is not None
        if run.state.has_ended:
            return run.state
        await driver.changes.wait(run_id, seq)


async def both(driver: Driver, broken: str) -> tuple[Faulty, Sound]:
    faulty, sound = Faulty("faulty", driver, broken), Sound("sound", driver)
    await driver.start({"faulty": faulty, "sound": sound})
    return faulty, sound


async def test_what_cannot_be_started_is_rejected_with_the_fault(driver: Driver, caplog: pytest.LogCaptureFixture) -> None:
    faulty, _ = await both(driver, "start")
    run_id = await submitted(driver, "faulty")
    assert await ended(driver, run_id) is State.ERRORED
    (attempt,) = await driver.reader.attempts(run_id, 0)
    (note,) = attempt.result.notes
    assert "the executor of pool faulty has a fault" in note and "ZeroDivisionError: by its author" in note
    assert [key.task_number for key in faulty.stopped] == [0, 1]  # which it may have begun
    assert await ended(driver, await submitted(driver, "sound")) is State.COMPLETED
    assert [record.exc_info is not None for record in caplog.records if record.levelno == logging.ERROR] == [True, False]


@pytest.mark.parametrize("broken", ["durable", "demand"])
async def test_what_it_raises_beside_its_attempts_changes_nothing(
    driver: Driver, broken: str, caplog: pytest.LogCaptureFixture
) -> None:
    await both(driver, broken)
    for pool in ("faulty", "sound"):
        assert await ended(driver, await submitted(driver, pool)) is State.COMPLETED
    assert "ZeroDivisionError: by its author" in caplog.text


async def test_a_stop_that_raises_leaves_the_attempt_to_end_later(driver: Driver, caplog: pytest.LogCaptureFixture) -> None:
    faulty, _ = await both(driver, "stop")
    run_id = await submitted(driver, "faulty")
    await faulty.given.wait()
    await driver.requests.kill(run_id, None)
    while not faulty.stopped:
        await asyncio.sleep(0)
    assert await ended(driver, await submitted(driver, "sound")) is State.COMPLETED
    assert "did not stop attempts" in caplog.text
    faulty.finish("h", faulty.stopped)
    await ended(driver, run_id)


@pytest.mark.parametrize("broken", ["close", "hang"])
async def test_all_others_are_closed(
    driver: Driver, broken: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A coordinator that is stopped is gone within 10 s, whatever an executor does."""
    monkeypatch.setattr(careful, "CLOSE_SECONDS", 0.1)
    faulty, sound = await both(driver, broken)
    await driver.close()
    await driver.close()  # as a coordinator does that takes its parts down one after the other
    assert sound.closed
    assert faulty.closings == (1 if broken == "hang" else 0)
    assert "the executor of pool faulty" in caplog.text


@pytest.mark.parametrize("broken", ["open"])
async def test_one_that_cannot_begin_is_named(driver: Driver, broken: str) -> None:
    with pytest.raises(ExecutorError, match=r"the executor of pool faulty .* did not open: ZeroDivisionError: by its author"):
        await both(driver, broken)
