"""What no client and no agent can see of the driver. Each test has a tracker and an executor in its own process."""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import msgspec
import pytest
from drivers import still_driver

from daggyr.bounds import MAX_NOTE_BYTES, MAX_NOTES
from daggyr.v1.task_pb2 import (
    FAILED,
    HOST_AVAILABLE,
    HOST_GONE,
    REJECTED,
    STDOUT,
    AssignmentBatch,
    AttemptKey,
    AttemptResult,
    AttemptUpdate,
    Host,
    OutputChunk,
    Placement,
)
from daggyr_server.api import views
from daggyr_server.api.awaited import utc
from daggyr_server.api.explanation import explanation
from daggyr_server.core.machine import Machine
from daggyr_server.core.moment import Moment
from daggyr_server.core.records import OutputKept, Record
from daggyr_server.core.rehearsal import Rehearsal
from daggyr_server.core.states import Phase, State
from daggyr_server.core.stored import EVERY_RUN, RunFilter, RunRow
from daggyr_server.driver import ended
from daggyr_server.driver.asking import REHEARSED_TASKS
from daggyr_server.driver.assignments import MAX_BYTES
from daggyr_server.driver.changes import Changes
from daggyr_server.driver.driver import Driver
from daggyr_server.driver.errors import Closing, Refused
from daggyr_server.driver.generators import Generators
from daggyr_server.driver.loop import BYTES_OF_AN_UPDATE, MAX_UPDATES_A_STEP
from daggyr_server.executors.base import Executor
from daggyr_server.executors.context import ExecutorContext
from daggyr_server.spec import decode_json, expand
from daggyr_server.trackers.memory.tracker import MemoryTracker
from daggyr_server.trackers.sql.sqlite.tracker import SqliteTracker

SURROUNDINGS = ExecutorContext(tracker_id="t", epoch=1, life=1, lease=1.0, heartbeat=1.0, grace=1.0)


class Taking(Executor):
    """An executor that takes what it is given and does nothing."""

    Settings = msgspec.Struct

    def __init__(self, driver: Driver) -> None:
        super().__init__("main", None, driver.reports("main"), SURROUNDINGS)
        self.given: asyncio.Queue[AttemptKey] = asyncio.Queue()

    async def open(self) -> None:
        self.reports.host(Host(host="h", name="h", state=HOST_AVAILABLE, resources={"cores": 1}))

    def start(self, host: str, batch: AssignmentBatch) -> None:
        for assignment in batch.assignments:
            self.given.put_nowait(assignment.key)

    def stop(self, host: str, keys: Sequence[AttemptKey]) -> None: ...

    def recall(self, host: str, keys: Sequence[AttemptKey]) -> None: ...

    def recover(self, placed: Sequence[tuple[AttemptKey, Placement]]) -> None: ...

    def follow(self, host: str, key: AttemptKey, stream: int, offset: int) -> AsyncIterator[OutputChunk]:
        raise NotImplementedError

    async def close(self) -> None: ...


@pytest.fixture
async def generators() -> Generators:
    return Generators({})


@pytest.fixture
async def driver(generators: Generators) -> AsyncIterator[Driver]:
    passed = itertools.count(1_000.0)  # a second passes whenever the clock is looked at, so that delays end
    clock = lambda: Moment(next(passed), 0.0)  # noqa: E731
    made = Driver(Machine(["main"]), MemoryTracker("memory"), Changes(1), generators, clock, durable=False, life=1)
    yield made
    await made.close()


async def submitted(driver: Driver, request_id: str = "r", **fields: Any) -> int:
    document = msgspec.json.encode({"tasks": {"a": {"details": {"command": ["x"]}, **fields}}})
    addition = expand(decode_json(document), default_pool="main")
    return await driver.requests.submit(
        request_id=request_id, tags={}, pool="main", parameters={}, addition=addition, document=document
    )


class Clocks:
    """Two clocks that the test sets. The event loop's own timers go on by the true one, but a delay that is over needs none."""

    def __init__(self) -> None:
        self.steady, self.wall = 50.0, 1_700_000_000.0

    def __call__(self) -> Moment:
        return Moment(self.steady, self.wall)


@pytest.mark.parametrize("jump", [-3_600.0, 3_600.0])
async def test_a_clock_that_is_set_changes_records_only(generators: Generators, jump: float) -> None:
    """A retry is due when it was, and people are told so by the clock as it is now."""
    clocks = Clocks()
    tracker = MemoryTracker("memory")
    driver = Driver(Machine(["main"]), tracker, Changes(1), generators, clocks, durable=False, life=1)
    try:
        executor = Taking(driver)
        await driver.start({"main": executor})
        run_id = await submitted(driver, max_retries=1, retry_delay=500)
        key = await executor.given.get()
        clocks.steady, clocks.wall = clocks.steady + 2, clocks.wall + 2
        durable = asyncio.Event()
        result = AttemptResult(outcome=FAILED, exit_code=1)
        result.start_time.FromNanoseconds(round((clocks.wall - 1.5) * 1e9))
        result.stop_time.FromNanoseconds(round(clocks.wall * 1e9))
        executor.reports.updates("h", [AttemptUpdate(key=key, finished=result)], durable.set)
        await durable.wait()
        run = await driver.reader.find(run_id)
        assert run is not None
        clocks.steady, clocks.wall = clocks.steady + 499, clocks.wall + 499 + jump
        (told, *_) = explanation(run, key.task_number, driver.reader.pools, clocks(), None)
        assert told == f"It waits until {utc(clocks.wall + 1)} before retry 1 of 1."
        await submitted(driver, "another")  # The loop makes a step, and nothing is due.
        assert run.phases[key.task_number] == Phase.DELAYED
        assert (await executor.given.get()).run_id != run_id
        clocks.steady += 1
        await driver.requests.kill(run_id + 1, None)
        assert run.phases[key.task_number] != Phase.DELAYED
        assert views.run_summary(run, driver.reader.pools, 0, clocks()).ran_seconds == 501.5
        moves = [(change.state, change.time) for change in await tracker.history(run_id, None)]
        assert moves == [(State.RUNNING, 1_700_000_000.5)]
    finally:
        await driver.close()


async def test_the_timer_goes_by_the_clock_that_the_driver_was_given(generators: Generators) -> None:
    """Whatever the wall clock says, a delay of no length that counts is over at once."""
    clocks = Clocks()
    clock = lambda: Moment(time.monotonic(), clocks.wall)  # noqa: E731
    driver = Driver(Machine(["main"]), MemoryTracker("memory"), Changes(1), generators, clock, durable=False, life=1)
    try:
        executor = Taking(driver)
        await driver.start({"main": executor})
        run_id = await submitted(driver, max_retries=1, retry_delay=1)
        key = await executor.given.get()
        executor.reports.updates("h", [AttemptUpdate(key=key, finished=AttemptResult(outcome=FAILED))], lambda: None)
        clocks.wall -= 3_600
        again = await executor.given.get()
        assert (again.run_id, again.attempt) == (run_id, 2)
    finally:
        await driver.close()


async def test_what_a_lost_generator_printed_is_not_kept(driver: Driver, generators: Generators) -> None:
    """The output is forgotten, because it may have 64 MiB for each generator."""
    executor = Taking(driver)
    await driver.start({"main": executor})
    run_id = await submitted(driver, is_generator=True)
    key = await executor.given.get()
    durable = asyncio.Event()
    chunk = OutputChunk(stream=STDOUT, offset=0, data=b"{}")
    executor.reports.updates("h", [AttemptUpdate(key=key, output=chunk)], durable.set)
    await durable.wait()
    assert generators.printed
    executor.reports.host(Host(host="h", name="h", state=HOST_GONE))
    executor.reports.host(Host(host="h", name="h", state=HOST_AVAILABLE, resources={"cores": 1}))
    again = await executor.given.get()
    assert (again.run_id, again.attempt) == (run_id, 2)
    assert (run_id, key.task_number, 1) not in generators.printed
    assert (run_id, key.task_number, 2) in generators.printed


async def test_much_output_is_committed_in_parts(generators: Generators) -> None:
    """What is asked meanwhile waits for one part, not for all that came."""

    class Weighing(MemoryTracker):
        commits: ClassVar[list[int]] = []

        async def commit(self, records: Sequence[Record]) -> None:
            self.commits.append(sum(len(record.data) for record in records if isinstance(record, OutputKept)))
            await super().commit(records)

    driver = still_driver("main", tracker=Weighing("memory"), generators=generators)
    try:
        executor = Taking(driver)
        await driver.start({"main": executor})
        await submitted(driver)
        key = await executor.given.get()
        size, durables = 256 * 1024, [asyncio.Event() for _ in range(40)]
        for number, durable in enumerate(durables):
            chunk = OutputChunk(stream=STDOUT, offset=number * size, data=bytes(size))
            executor.reports.updates("h", [AttemptUpdate(key=key, output=chunk)], durable.set)
        for durable in durables:
            await durable.wait()
        assert sum(Weighing.commits) == 40 * size
        assert max(Weighing.commits) <= MAX_UPDATES_A_STEP * BYTES_OF_AN_UPDATE + size
    finally:
        await driver.close()


async def test_batches_are_counted_before_they_grow(driver: Driver) -> None:
    """Small assignments share a batch. A batch is larger than MAX_BYTES only if a single assignment is."""

    class Keeping(Taking):
        batches: ClassVar[list[AssignmentBatch]] = []

        def start(self, host: str, batch: AssignmentBatch) -> None:
            self.batches.append(batch)
            super().start(host, batch)

    executor = Keeping(driver)
    await driver.start({"main": executor})
    sizes = [900_000, 3_000_000, 10, 10, 600_000, 600_000]
    resources = {"cores": 0}
    tasks: dict[str, Any] = {
        f"{number}": {"details": {"command": ["x"], "stdin": "x" * size, "resources": resources}}
        for number, size in enumerate(sizes)
    }
    tasks["same"] = {
        "details": {"command": ["x", "{{X}}"], "resources": resources},
        "parameters": {"{{X}}": ["\N{SNOWMAN}" * 300 + str(number) for number in range(600)]},
    }
    document = msgspec.json.encode({"tasks": tasks})
    addition = expand(decode_json(document), default_pool="main")
    await driver.requests.submit(request_id="r", tags={}, pool="main", parameters={}, addition=addition, document=document)
    given = 0
    while given < len(sizes) + 600:
        await executor.given.get()
        given += 1
    assert all(len(batch.assignments) == 1 or batch.ByteSize() <= MAX_BYTES for batch in executor.batches)
    assert all(batch.ByteSize() <= max(sizes) + 1000 for batch in executor.batches)
    assert len(executor.batches) < 15


async def test_notes_of_a_result_are_bounded(driver: Driver) -> None:
    executor = Taking(driver)
    await driver.start({"main": executor})
    run_id = await submitted(driver)
    key = await executor.given.get()
    durable = asyncio.Event()
    result = AttemptResult(outcome=REJECTED, notes=["there is no program " + "x" * 3_000_000, *["note"] * 100])
    executor.reports.updates("h", [AttemptUpdate(key=key, finished=result)], durable.set)
    await durable.wait()
    (stored,) = await driver.reader.attempts(run_id, key.task_number)
    assert len(stored.result.notes) == MAX_NOTES
    assert len(stored.result.notes[0]) == MAX_NOTE_BYTES
    assert stored.result.notes[0].endswith("... (3,000,020 bytes in all)")
    assert stored.result.notes[-1] == "and 70 more notes"


@pytest.mark.parametrize("request_again", ["kill", "retry", "mark"])
async def test_a_run_that_left_memory_after_it_was_found_is_brought_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request_again: str
) -> None:
    """A run may leave memory after a caller has found it, because ended runs leave when others are looked at."""
    monkeypatch.setattr(ended, "KEPT_ENDED_RUNS", 1)
    tracker = SqliteTracker(f"sqlite:{tmp_path}/state.db")
    opened = await tracker.open()
    driver = still_driver("main", tracker=tracker, durable=opened.durable, life=opened.life)
    await driver.start({})
    try:
        first, second = await submitted(driver, "first"), await submitted(driver, "second")
        for run_id in (first, second):
            await driver.requests.kill(run_id, None)
        assert await driver.reader.find(first) is not None
        assert await driver.reader.find(second) is not None
        match request_again:
            case "kill":
                with pytest.raises(Refused, match="has ended already"):
                    await driver.requests.kill(first, None)
            case "retry":
                await driver.requests.retry(first, None, downstream=False)
                run = await driver.reader.find(first)
                assert run is not None and run.state is State.QUEUED
            case "mark":
                await driver.requests.mark(first, (0,), completed=True)
                run = await driver.reader.find(first)
                assert run is not None and run.state is State.COMPLETED
    finally:
        await driver.close()


async def test_others_are_answered_while_a_large_run_is_changed(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is asked of a large run is carried out in a thread; until that is done, the loop goes on and the run is as it was."""
    begun, gate = threading.Event(), threading.Event()
    carried_out = Rehearsal.carried_out

    def slowly(self: Rehearsal, *given: Any) -> Any:
        begun.set()
        assert gate.wait(60)
        return carried_out(self, *given)

    monkeypatch.setattr(Rehearsal, "carried_out", slowly)
    await driver.start({"main": Taking(driver)})
    resources = {"cores": 2}  # more than the host has, so that nothing begins
    spec = {
        "parameters": {"N": [str(number) for number in range(REHEARSED_TASKS)]},
        "tasks": {"a": {"details": {"command": ["x", "N"], "resources": resources}}},
    }
    document = msgspec.json.encode(spec)
    addition = expand(decode_json(document), default_pool="main")
    large = await driver.requests.submit(
        request_id="large", tags={}, pool="main", parameters={}, addition=addition, document=document
    )
    small = await submitted(driver, "small")
    run = driver.reader.in_memory(large)
    assert run is not None
    marking = asyncio.create_task(driver.requests.mark(large, range(1, REHEARSED_TASKS + 1), completed=True))
    await asyncio.to_thread(begun.wait, 60)
    await driver.requests.kill(small, None)
    assert not marking.done() and run.state is State.QUEUED
    gate.set()
    await marking
    assert run.state is State.COMPLETED


async def test_runs_are_pruned_so_many_a_call(driver: Driver) -> None:
    await driver.start({})
    runs = [await submitted(driver, f"r{number}") for number in range(5)]
    for run_id in runs[:4]:
        await driver.requests.kill(run_id, None)
    left, pruned = None, []
    for _ in range(3):
        deleted, left = await driver.requests.prune(1.0, limit=2, newest=left)
        pruned.append((deleted, left))
    assert pruned == [(2, runs[2]), (2, runs[0]), (0, None)]
    assert [row.run_id for row in await driver.reader.rows(before=None, limit=10)] == runs[4:]


async def test_runs_are_pruned_together_and_one_that_is_queued_again_stays() -> None:
    class Counting(MemoryTracker):
        deleted: ClassVar[list[list[int]]] = []
        queued_again = 0

        async def rows(self, *, before: int | None, limit: int, wanted: RunFilter = EVERY_RUN) -> list[RunRow]:
            found = await super().rows(before=before, limit=limit, wanted=wanted)
            if self.queued_again:
                again, self.queued_again = self.queued_again, 0
                await driver.requests.retry(again, None, downstream=False)
            return found

        async def delete(self, run_ids: Sequence[int], limit: int) -> bool:
            self.deleted.append(list(run_ids))
            return await super().delete(run_ids, limit)

    tracker = Counting("memory")
    driver = still_driver("main", tracker=tracker)
    await driver.start({})
    runs = [await submitted(driver, f"r{number}") for number in range(5)]
    for run_id in runs:
        await driver.requests.kill(run_id, None)
    tracker.queued_again = runs[1]
    assert await driver.requests.prune(2_000.0) == (4, None)
    assert [row.run_id for row in await driver.reader.rows(before=None, limit=10)] == [runs[1]]
    await driver.requests.kill(runs[1], None)
    more = [await submitted(driver, f"m{number}") for number in range(300)]
    for run_id in more:
        await driver.requests.kill(run_id, None)
    Counting.deleted.clear()
    assert await driver.requests.prune(2_000.0) == (301, None)
    assert [len(together) for together in Counting.deleted] == [250, 51]
    await driver.close()


async def test_what_is_asked_of_a_driver_that_ends_is_answered() -> None:
    """Requests under way and later ones all get the same error, so that no caller waits for ever."""

    class Stuck(MemoryTracker):
        committing = asyncio.Event()

        async def commit(self, records: Sequence[Record]) -> None:
            self.committing.set()
            await asyncio.Event().wait()

    driver = still_driver("main", tracker=Stuck("memory"))
    await driver.start({})
    under_way = [asyncio.ensure_future(submitted(driver)), asyncio.ensure_future(driver.requests.keep_pin("agent", "name", None))]
    await Stuck.committing.wait()
    await driver.close()
    for each in await asyncio.gather(*under_way, return_exceptions=True):
        assert isinstance(each, Closing)
    with pytest.raises(Closing, match="going away"):
        await driver.requests.kill(1, None)
    with pytest.raises(Closing, match="going away"):
        await driver.requests.keep_pin("agent", "name", None)
