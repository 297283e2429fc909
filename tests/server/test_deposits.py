"""A large document is on its way to the tracker: what others ask is granted meanwhile, and nothing is left of what failed."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest
from drivers import still_driver
from support.waiting import DEADLINE

from daggyr_server.core.graph.run import Run
from daggyr_server.core.step import Reason
from daggyr_server.driver.driver import Driver
from daggyr_server.driver.errors import Refused
from daggyr_server.spec import PoolLimits, decode_json, expand
from daggyr_server.trackers.base import TrackerError
from daggyr_server.trackers.sql.sqlite.tracker import SqliteTracker

LARGE = 2_500_000  # bytes of a task; a deposit is made of several pieces


class Held(SqliteTracker):
    """Waits before the second piece of each deposit until it is let go, and then fails if it is to."""

    def __init__(self, address: str) -> None:
        super().__init__(address)
        self.reached, self.goes_on = asyncio.Event(), asyncio.Event()
        self.failing = False

    async def _add_deposit_piece(self, number: int, start: int, data: bytes | memoryview) -> None:
        if start:
            self.reached.set()
            await self.goes_on.wait()
            if self.failing:
                raise TrackerError("the disk is full")
        await super()._add_deposit_piece(number, start, data)

    async def nothing_left(self) -> None:
        """Return once no deposit is nobody's."""
        async with asyncio.timeout(DEADLINE):
            while await self.deposits():
                await asyncio.sleep(0)


@pytest.fixture
async def tracker(tmp_path: Path) -> Held:
    return Held(f"sqlite:{tmp_path}/state.db")


@pytest.fixture
async def driver(tracker: Held) -> AsyncIterator[Driver]:
    opened = await tracker.open()
    made = still_driver("main", tracker=tracker, durable=opened.durable, life=opened.life)
    await made.start({})
    yield made
    await made.close()


def specification(size: int, *names: str) -> bytes:
    return msgspec.json.encode({"tasks": {name: {"details": {"command": [name], "stdin": "x" * size}} for name in names}})


async def submitted(driver: Driver, document: bytes, request_id: str = "large") -> int:
    addition = expand(decode_json(document), default_pool="main")
    return await driver.requests.submit(
        request_id=request_id, tags={}, pool="main", parameters={}, addition=addition, document=document
    )


async def edited(driver: Driver, run_id: int, document: bytes, edits: int = 0) -> None:
    run = await found(driver, run_id)
    asked = {"downstream": False, "remove": False, "most": 100}
    await driver.requests.edit(run, decode_json(document), document, edits, pools={"main": PoolLimits()}, **asked)  # type: ignore[arg-type]


async def found(driver: Driver, run_id: int) -> Run:
    run = await driver.reader.find(run_id)
    assert run is not None
    return run


async def names(driver: Driver, run_id: int) -> list[str]:
    graph = (await found(driver, run_id)).graph
    return [graph.task_id(number) for number in range(graph.live, graph.size)]


async def test_others_are_granted_what_they_ask_while_a_large_run_comes(driver: Driver, tracker: Held) -> None:
    small = await submitted(driver, specification(1, "a", "b"), "small")
    document = specification(LARGE, "large")
    coming = asyncio.ensure_future(submitted(driver, document))
    await tracker.reached.wait()
    await driver.requests.mark(small, [0], completed=True)
    await driver.requests.kill(small, None)
    assert not coming.done()
    tracker.goes_on.set()
    run_id = await coming
    assert run_id == small + 1
    assert await tracker.document(run_id) == document
    await tracker.nothing_left()


async def test_others_are_granted_what_they_ask_while_a_large_edit_comes(driver: Driver, tracker: Held) -> None:
    small, run_id = await submitted(driver, specification(1, "a"), "small"), await submitted(driver, specification(1, "b"))
    document = specification(LARGE, "b", "c")
    coming = asyncio.ensure_future(edited(driver, run_id, document))
    await tracker.reached.wait()
    await driver.requests.kill(small, None)
    assert await names(driver, run_id) == ["b"] and not coming.done()
    tracker.goes_on.set()
    await coming
    assert await names(driver, run_id) == ["b", "c"]
    assert await tracker.document(run_id, (await found(driver, run_id)).revision) == document


async def test_of_two_edits_the_first_counts_and_nothing_is_left_of_the_other(driver: Driver, tracker: Held) -> None:
    run_id = await submitted(driver, specification(1, "a"))
    late = asyncio.ensure_future(edited(driver, run_id, specification(LARGE, "a", "late")))
    await tracker.reached.wait()
    await edited(driver, run_id, specification(1, "a", "first"))
    tracker.goes_on.set()
    with pytest.raises(Refused) as refused:
        await late
    assert refused.value.refusal.reason is Reason.CONFLICT
    assert await names(driver, run_id) == ["a", "first"]
    await tracker.nothing_left()


async def test_a_request_that_came_before_is_not_granted_again(driver: Driver, tracker: Held) -> None:
    tracker.goes_on.set()
    document = specification(LARGE, "large")
    assert await submitted(driver, document) == await submitted(driver, document)
    await tracker.nothing_left()


@pytest.mark.parametrize("in_the_loop", [False, True])
async def test_nothing_is_left_of_one_whose_caller_went_away(
    driver: Driver, tracker: Held, monkeypatch: pytest.MonkeyPatch, in_the_loop: bool
) -> None:
    """If the loop has the request already, it is granted all the same."""
    committing, goes_on = asyncio.Event(), asyncio.Event()
    commit = tracker.commit

    async def held(records: object) -> None:
        committing.set()
        await goes_on.wait()
        await commit(records)  # type: ignore[arg-type]

    monkeypatch.setattr(tracker, "commit", held)
    coming = asyncio.ensure_future(submitted(driver, specification(LARGE, "large")))
    await tracker.reached.wait()
    if in_the_loop:
        tracker.goes_on.set()
        await committing.wait()
    coming.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await coming
    tracker.goes_on.set()
    goes_on.set()
    await tracker.nothing_left()
    small = await submitted(driver, specification(1, "small"), "small")
    assert small == 1 + in_the_loop
    assert [row.run_id for row in await tracker.rows(before=small, limit=10)] == [1] * in_the_loop


async def test_a_deposit_that_fails_comes_with_the_commit(driver: Driver, tracker: Held) -> None:
    """What keeps things from being durable is told, and waited for, in one place: where all commits are made."""
    tracker.failing = True
    tracker.goes_on.set()
    document = specification(LARGE, "large")
    run_id = await submitted(driver, document)
    assert await tracker.document(run_id) == document
    await tracker.nothing_left()
