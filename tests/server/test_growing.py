"""A run that was edited is made again of the newest specification and of what edits kept: the same as of all its documents.

Each test has a driver and a sqlite tracker in its own process. An executor that takes everything stands in for hosts, so that a
generator prints what the test says.
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
from drivers import still_driver

from daggyr.v1.task_pb2 import (
    HOST_AVAILABLE,
    STDOUT,
    SUCCEEDED,
    AssignmentBatch,
    AttemptKey,
    AttemptResult,
    AttemptUpdate,
    Host,
    OutputChunk,
    OutputSummary,
    Placement,
)
from daggyr_server.core.graph.run import Run
from daggyr_server.core.graph.segments import Kind
from daggyr_server.core.moment import Moment
from daggyr_server.core.stored import needed
from daggyr_server.driver import growing
from daggyr_server.driver.driver import Driver
from daggyr_server.driver.generators import Generators
from daggyr_server.driver.recovery import recovered
from daggyr_server.executors.base import Executor
from daggyr_server.executors.context import ExecutorContext
from daggyr_server.spec import PoolLimits, RunSpec, decode_json, expand
from daggyr_server.trackers.sql.sqlite.tracker import SqliteTracker

SURROUNDINGS = ExecutorContext(tracker_id="t", epoch=1, life=1, lease=1.0, heartbeat=1.0, grace=1.0)
LIMITS = {"main": PoolLimits(), "other": PoolLimits()}
TASK = {"details": {"command": ["x"]}}


def spec(**tasks: Any) -> dict[str, Any]:
    return {"tasks": {name.replace("__", "."): {**TASK, **fields} for name, fields in tasks.items()}}


def many(*values: str, **fields: Any) -> dict[str, Any]:
    """A task that is multiplied."""
    return {"details": {"command": ["x", "{{V}}"]}, "parameters": {"{{V}}": list(values)}, **fields}


GENERATOR = {"is_generator": True, "priority": 2}
SPECS = [
    spec(a={"children": ["b"]}, b={}, g=GENERATOR, m=many("1", "2", "3")),
    spec(b={"pool": "other"}, g=GENERATOR, m=many("2", "3", "4", children=["c"]), c={"max_retries": 3}),
    spec(b={"pool": "other"}, c={"details": {"command": ["y"]}}, g=GENERATOR, m=many("2")),
    spec(b={}, c={}, h=GENERATOR, m=many("2", "5", children=["b"]), g=GENERATOR),
    spec(z={}, g=GENERATOR, h=GENERATOR, m={}),
]
# What generators made gets the defaults of the specification that the run has.
for number, each in enumerate(SPECS):
    each["defaults"] = {"max_retries": number, "details": {"environment": {"A": "0"}, "timeout": f"{number}h"}}


class Taking(Executor):
    """Takes what it is given."""

    Settings = msgspec.Struct

    def __init__(self, pool: str, driver: Driver) -> None:
        super().__init__(pool, None, driver.reports(pool), SURROUNDINGS)
        self.given: asyncio.Queue[AttemptKey] = asyncio.Queue()

    async def open(self) -> None:
        self.reports.host(Host(host="h", name="h", state=HOST_AVAILABLE, resources={"cores": 100}))

    def start(self, host: str, batch: AssignmentBatch) -> None:
        for assignment in batch.assignments:
            self.given.put_nowait(assignment.key)

    def stop(self, host: str, keys: Sequence[AttemptKey]) -> None: ...

    def recall(self, host: str, keys: Sequence[AttemptKey]) -> None: ...

    def recover(self, placed: Sequence[tuple[AttemptKey, Placement]]) -> None: ...

    def follow(self, host: str, key: AttemptKey, stream: int, offset: int) -> AsyncIterator[OutputChunk]:
        raise NotImplementedError

    async def close(self) -> None: ...

    async def print(self, run: Run, name: str, document: dict[str, Any]) -> None:
        """The attempt of a generator prints a document and succeeds."""
        while True:
            key = await self.given.get()
            if run.graph.task_id(key.task_number) == name:
                break
        data, durable = msgspec.json.encode(document["tasks"]), asyncio.Event()
        result = AttemptResult(outcome=SUCCEEDED, stdout=OutputSummary(size_bytes=len(data)))
        updates = [
            AttemptUpdate(key=key, output=OutputChunk(stream=STDOUT, offset=0, data=data)),
            AttemptUpdate(key=key, finished=result),
        ]
        self.reports.updates("h", updates, durable.set)
        await durable.wait()


class Edited:
    """A run with the first of SPECS, and a driver that has it."""

    def __init__(self, driver: Driver, tracker: SqliteTracker) -> None:
        self.driver = driver
        self.tracker = tracker
        self.main = Taking("main", driver)

    async def begin(self) -> None:
        await self.driver.start({"main": self.main, "other": Taking("other", self.driver)})
        document = msgspec.json.encode(SPECS[0])
        given = decode_json(document)
        await self.driver.requests.submit(
            request_id="r",
            tags={},
            pool="main",
            parameters=given.run_parameters(),
            addition=expand(given, default_pool="main"),
            document=document,
        )

    async def run(self) -> Run:
        run = await self.driver.reader.find(1)
        assert run is not None
        return run

    async def edit(self, document: dict[str, Any]) -> None:
        run, data = await self.run(), msgspec.json.encode(document)
        given: RunSpec = decode_json(data)
        await self.driver.requests.edit(
            run,
            given,
            data,
            len(run.graph.edits),
            pools=LIMITS,
            downstream=False,
            remove=True,
            most=1000,
        )

    async def made_again(self) -> Run:
        """The run as the next coordinator would have it."""
        found = await recovered(1, self.tracker, list, Moment(1_000.0, 1_000.0))
        assert found is not None
        return found.event.run


@pytest.fixture
async def edited(tmp_path: Path) -> AsyncIterator[Edited]:
    tracker = SqliteTracker(f"sqlite:{tmp_path}/state.db")
    opened = await tracker.open()
    generators = Generators(LIMITS)
    driver = still_driver("main", "other", tracker=tracker, generators=generators, durable=True, life=opened.life)
    made = Edited(driver, tracker)
    await made.begin()
    yield made
    await driver.close()


def told(run: Run) -> dict[str, Any]:
    """All that is to be the same."""
    graph = run.graph
    numbers = range(graph.size)
    return {
        "names": [graph.task_id(number) for number in numbers],
        "policies": [graph.policy(number) for number in numbers],
        "commands": [graph.details(number).template for number in numbers[graph.live :] if graph.kind(number) is Kind.TASK],
        "now": [graph.newest(number) for number in numbers],
        "before": [graph.lineage(number) for number in range(graph.live, graph.size)],
        "children": [list(graph.children(number)) for number in range(graph.live, graph.size)],
        "waiting": list(run.waiting[graph.live :]),
        "phases": bytes(run.phases[graph.live :]),
        "attempts": list(run.attempts[graph.live :]),
        "of a name": {name: graph.number_before(name) for name in map(graph.task_id, numbers)},
        "printed": run.printed,
        "parameters": run.parameters,
        "revision": run.revision,
        "in flight": sorted((number, flight.number, flight.attempt) for number, flight in run.in_flight.items()),
    }


async def grow(edited: Edited) -> None:
    """Edit the run again and again, with generators that print in between."""
    await edited.main.print(await edited.run(), "g", spec(g1={"children": ["g2"]}, g2={"pool": "other"}, gm=many("1", "2")))
    for document in SPECS[1:4]:
        await edited.edit(document)
    await edited.main.print(await edited.run(), "h", spec(h1={"details": {"script": "x"}}))
    await edited.edit(SPECS[4])


def change(folder: Path, statement: str) -> None:
    """Change the tracker behind its back."""
    with contextlib.closing(sqlite3.connect(folder / "state.db")) as connection, connection:
        assert connection.execute(statement).rowcount > 0


async def test_it_is_the_same_as_of_all_documents(edited: Edited, tmp_path: Path) -> None:
    await grow(edited)
    live = told(await edited.run())
    stored = await edited.tracker.load(1)
    assert stored is not None and len(stored.replaced) == 4
    # Tasks that the first generator made are part of the run still.
    assert needed(stored.growths, stored.replaced) == {2, 7, 6}
    assert [bool(growth.document) for growth in stored.growths] == [True, False, False, False, True, True]
    kept = told(await edited.made_again())
    change(tmp_path, "DELETE FROM document WHERE revision < 0")
    whole = told(await edited.made_again())
    for each in live:
        if each not in ("phases", "in flight"):
            assert kept[each] == live[each], each
        assert kept[each] == whole[each], each


@pytest.mark.parametrize("missing", [{3}, {4}, {3, 5}, {4, 5}, {7}], ids=str)
async def test_edits_of_earlier_versions_are_made_again(edited: Edited, tmp_path: Path, missing: set[int]) -> None:
    """They have left nothing beside their documents; later ones may have."""
    await grow(edited)
    kept = told(await edited.made_again())
    for revision in missing:
        change(tmp_path, f"DELETE FROM document WHERE revision = -{revision}")
    assert told(await edited.made_again()) == kept


@pytest.mark.parametrize(
    "damage", ["substr(data, 1, length(data) - 1)", "zeroblob(length(data))", "cast(data || x'00000000' AS blob)"]
)
async def test_what_was_kept_and_is_damaged_only_costs_time(
    edited: Edited, tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    await grow(edited)
    kept = told(await edited.made_again())
    change(tmp_path, f"UPDATE document SET data = {damage} WHERE revision = -4")
    assert told(await edited.made_again()) == kept
    assert "run 1 is restored from all its documents" in caplog.text


async def test_nothing_of_what_was_replaced_is_expanded(edited: Edited, monkeypatch: pytest.MonkeyPatch) -> None:
    """A start costs what the newest specification costs, however often a run was edited."""
    await grow(edited)
    expanded: list[int] = []

    def counted(spec: RunSpec, **given: Any) -> Any:
        expanded.append(len(spec.tasks))
        return expand(spec, **given)

    monkeypatch.setattr(growing, "expand", counted)
    monkeypatch.delattr(growing, "expand_edit")
    await edited.made_again()
    assert expanded == [len(SPECS[4]["tasks"])]
