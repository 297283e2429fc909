"""A generator whose tasks take long to make: all else goes on, and its end counts as if nothing had come in between.

The test holds the thread that makes the tasks, and lets it go on when it has seen what goes on meanwhile.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
from drivers import still_driver

from daggyr.v1.task_pb2 import (
    HOST_AVAILABLE,
    HOST_GONE,
    LOST,
    STDOUT,
    SUCCEEDED,
    AssignmentBatch,
    AttemptKey,
    AttemptResult,
    AttemptUpdate,
    Host,
    OutputChunk,
    Placement,
)
from daggyr_server.core.graph.run import Run
from daggyr_server.core.states import State
from daggyr_server.driver import generators
from daggyr_server.driver.driver import Driver
from daggyr_server.driver.errors import Refused
from daggyr_server.executors.base import Executor
from daggyr_server.executors.context import ExecutorContext
from daggyr_server.spec import PoolLimits, decode_json, expand
from daggyr_server.trackers.sql.sqlite.tracker import SqliteTracker

CONTEXT = ExecutorContext(tracker_id="t", epoch=1, life=1, lease=1.0, heartbeat=1.0, grace=1.0)
LARGE = 1024 * 1024 + 1


class Hosts(Executor):
    """Two hosts, `one` and `two`, that take what they are given and do nothing."""

    Settings = msgspec.Struct

    def __init__(self, driver: Driver) -> None:
        super().__init__("main", None, driver.reports("main"), CONTEXT)
        self.given: asyncio.Queue[tuple[str, AttemptKey]] = asyncio.Queue()

    async def open(self) -> None:
        for host in ("one", "two"):
            self.tell(host, HOST_AVAILABLE)

    def tell(self, host: str, state: Any) -> None:
        self.reports.host(Host(host=host, name=host, state=state, resources={"cores": 1}))

    def start(self, host: str, batch: AssignmentBatch) -> None:
        for assignment in batch.assignments:
            self.given.put_nowait((host, assignment.key))

    def ends(self, host: str, key: AttemptKey, printed: bytes = b"", outcome: Any = SUCCEEDED) -> asyncio.Event:
        """Tell all of an attempt at once. The event is set once that is durable."""
        chunk = OutputChunk(stream=STDOUT, offset=0, data=printed)
        result = AttemptResult(outcome=outcome)
        result.stdout.size_bytes = len(printed)
        durable = asyncio.Event()
        self.reports.updates(host, [AttemptUpdate(key=key, output=chunk), AttemptUpdate(key=key, finished=result)], durable.set)
        return durable

    def stop(self, host: str, keys: Sequence[AttemptKey]) -> None: ...

    def recall(self, host: str, keys: Sequence[AttemptKey]) -> None: ...

    def recover(self, placed: Sequence[tuple[AttemptKey, Placement]]) -> None: ...

    def follow(self, host: str, key: AttemptKey, stream: int, offset: int) -> AsyncIterator[OutputChunk]:
        raise NotImplementedError

    async def close(self) -> None: ...


class Held:
    """Holds whoever makes the tasks of a generator."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.made = 0
        self._go_on, self._is_there = threading.Event(), threading.Event()
        expand_generated = generators.expand_generated

        def held(*arguments: Any, **named: Any) -> Any:
            self._is_there.set()
            self._go_on.wait()
            self.made += 1
            return expand_generated(*arguments, **named)

        monkeypatch.setattr(generators, "expand_generated", held)

    async def reached(self) -> None:
        await asyncio.to_thread(self._is_there.wait)

    def let_go(self) -> None:
        self._go_on.set()


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Iterator[Held]:
    made = Held(monkeypatch)
    yield made
    made.let_go()


@pytest.fixture
async def driver(tmp_path: Path) -> AsyncIterator[Driver]:
    tracker = SqliteTracker(f"sqlite:{tmp_path}/state.db")
    opened = await tracker.open()
    pools = generators.Generators({"main": PoolLimits()})
    made = still_driver("main", tracker=tracker, generators=pools, durable=opened.durable, life=opened.life)
    yield made
    await made.close()


@pytest.fixture
async def hosts(driver: Driver) -> Hosts:
    made = Hosts(driver)
    await driver.start({"main": made})
    return made


def printed(*names: str) -> bytes:
    """A document of these tasks that is large."""
    tasks = {name: {"details": {"command": [name], "stdin": "x" * (LARGE // len(names))}} for name in names}
    return msgspec.json.encode(tasks)


async def submitted(driver: Driver, **tasks: dict[str, Any]) -> int:
    document = msgspec.json.encode({"tasks": {name: {"details": {"command": ["x"]}, **keys} for name, keys in tasks.items()}})
    return await driver.requests.submit(
        request_id=str(tasks),
        tags={},
        pool="main",
        parameters={},
        addition=expand(decode_json(document), default_pool="main"),
        document=document,
    )


async def found(driver: Driver, run_id: int) -> Run:
    run = await driver.reader.find(run_id)
    assert run is not None
    return run


async def test_reports_and_requests_of_other_runs_go_on_and_are_durable(driver: Driver, hosts: Hosts, held: Held) -> None:
    grows = await submitted(driver, g={"is_generator": True})
    host, key = await hosts.given.get()
    durable = hosts.ends(host, key, printed("made", "too"))
    await held.reached()
    other = await submitted(driver, a={"children": ["b"]}, b={})
    for _ in "ab":
        at, another = await hosts.given.get()
        assert another.run_id == other and at != host
        await hosts.ends(at, another).wait()
    assert (await found(driver, other)).state is State.COMPLETED
    await driver.requests.retry(other, [0], downstream=False)
    assert not durable.is_set() and not held.made
    held.let_go()
    await durable.wait()
    run = await found(driver, grows)
    assert run.task_states()[State.COMPLETED] == 1 and run.graph.size == 3
    assert await driver.reader.document(grows, run.revision) == printed("made", "too")


async def test_what_its_host_tells_meanwhile_does_not_end_it_in_another_way(driver: Driver, hosts: Hosts, held: Held) -> None:
    """HOST_GONE makes LOST what was not told before, and the end was."""
    run_id = await submitted(driver, g={"is_generator": True})
    host, key = await hosts.given.get()
    durables = [hosts.ends(host, key, printed("made"))]
    await held.reached()
    durables.append(hosts.ends(host, key, outcome=LOST))  # told twice: the first one counts
    hosts.tell(host, HOST_GONE)
    hosts.tell(host, HOST_AVAILABLE)
    await submitted(driver, other={})
    at, _ = await hosts.given.get()
    assert at != host
    assert not any(durable.is_set() for durable in durables)
    held.let_go()
    for durable in durables:
        await durable.wait()
    (attempt,) = await driver.reader.attempts(run_id, key.task_number)
    assert attempt.result.outcome == SUCCEEDED
    at, made = await hosts.given.get()
    assert (at, made.run_id, made.task_number) == (host, run_id, 1), "the host is back"


async def test_an_edit_waits_for_it(driver: Driver, hosts: Hosts, held: Held) -> None:
    run_id = await submitted(driver, g={"is_generator": True})
    host, key = await hosts.given.get()
    durable = hosts.ends(host, key, printed("made"))
    await held.reached()
    document = msgspec.json.encode(
        {"tasks": {"g": {"details": {"command": ["x"]}, "is_generator": True}, "new": {"details": {"command": ["x"]}}}}
    )
    run = await found(driver, run_id)
    edit = driver.requests.edit(
        run, decode_json(document), document, 0, pools={"main": PoolLimits()}, downstream=False, remove=False, most=100
    )
    editing = asyncio.ensure_future(edit)
    other = await submitted(driver, other={})
    at, another = await hosts.given.get()
    assert another.run_id == other and at != host
    assert not editing.done()
    held.let_go()
    await durable.wait()
    await editing
    run = await found(driver, run_id)
    assert {run.graph.task_id(number) for number in range(run.graph.live, run.graph.size)} == {"g", "new", "made"}


async def test_generators_of_one_run_grow_it_one_after_the_other(driver: Driver, hosts: Hosts, held: Held) -> None:
    run_id = await submitted(driver, g={"is_generator": True}, h={"is_generator": True})
    first, second = await hosts.given.get(), await hosts.given.get()
    durables = [hosts.ends(*first, printed("made"))]
    await held.reached()
    durables.append(hosts.ends(*second, b'{"small": {"details": {"command": ["x"]}}}'))
    held.let_go()
    for durable in durables:
        await durable.wait()
    run = await found(driver, run_id)
    assert held.made == 2, "none was made for a graph that changed meanwhile"
    assert [run.graph.task_id(number) for number in range(run.graph.size)] == ["g", "h", "made", "small"]


async def test_what_is_refused_is_not_kept(driver: Driver, hosts: Hosts, held: Held) -> None:
    run_id = await submitted(driver, g={"is_generator": True})
    host, key = await hosts.given.get()
    held.let_go()
    await hosts.ends(host, key, printed("g")).wait()
    run = await found(driver, run_id)
    assert run.state is State.ERRORED
    with pytest.raises(Refused, match="has ended already"):
        await driver.requests.kill(run_id, None)
    assert await driver._tracker.deposits() == []


async def test_a_fault_of_ours_ends_the_coordinator(driver: Driver, hosts: Hosts, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: Any, **named: Any) -> None:
        raise RuntimeError("a fault")

    monkeypatch.setattr(generators, "expand_generated", broken)
    await submitted(driver, g={"is_generator": True})
    hosts.ends(*await hosts.given.get(), printed("made"))
    with pytest.raises(RuntimeError, match="a fault"):
        await driver.ended()
