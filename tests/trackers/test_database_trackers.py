"""What sqlite and postgres trackers promise beyond the suite: crashes, locks, epochs and bounds."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from postgres_databases import databases
from support.waiting import DEADLINE
from tracker_kinds import DATABASES, IN_VAIN, OpenAgain, TrackerKind
from tracker_records import assigned, ended, kept, recorded, run_added, whole

from daggyr_server.core.records import TasksGenerated
from daggyr_server.core.states import Outcome, State
from daggyr_server.core.stored import Growth
from daggyr_server.trackers.base import LostTracker, Tracker, TrackerError
from daggyr_server.trackers.sql.postgres import tracker as postgres
from daggyr_server.trackers.sql.postgres.address import PostgresAddress

pytestmark = pytest.mark.parametrize("kind", DATABASES, indirect=True, ids=lambda kind: kind.name)
HERE = Path(__file__).parent


@asynccontextmanager
async def committing(address: str, first: int, size: int) -> AsyncIterator[asyncio.subprocess.Process]:
    """A process that commits as a coordinator does; see committing.py. It is killed in the end."""
    path = os.pathsep.join((str(HERE), str(HERE.parent)))
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, str(HERE / "committing.py"), address, str(first), str(size)),
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": path},
    )
    try:
        assert process.stdout is not None
        assert await process.stdout.readline() == b"open\n"
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
        process._transport.close()  # type: ignore[attr-defined]


async def test_a_killed_coordinator_leaves_whole_commits(kind: TrackerKind, tmp_path: Path) -> None:
    address, size, dice = kind.address(tmp_path), 20, random.Random(7)
    tracker = kind.make(address)
    await tracker.open()
    await tracker.commit([run_added()])
    await tracker.close()
    durable = 0
    for _ in range(4):
        async with committing(address, durable + 1, size) as process:
            told = durable
            assert process.stdout is not None
            for _ in range(dice.randrange(1, 25)):
                told = int(await process.stdout.readline())
            for _ in range(dice.randrange(200)):  # somewhere in the next commit
                await asyncio.sleep(0)
            process.kill()
        tracker = kind.make(address)
        await tracker.open()
        stored = await tracker.load(1)
        assert stored is not None
        (durable,) = set(stored.tasks.attempts)
        assert durable >= told, "a commit that returned is gone"
        assert list(stored.tasks.failures) == [durable] * size
        assert stored.in_flight == []
        for task in range(size):
            assert [entry.attempt for entry in await tracker.attempts(1, task)] == list(range(1, durable + 1))
            assert await whole(tracker, number=task, attempt=durable) == [(0, b"%d" % durable)]
        await tracker.close()


# -- who holds it -----------------------------------------------------------------------------------------------------


async def test_a_second_coordinator_is_told_who_holds_it(kind: TrackerKind, tmp_path: Path) -> None:
    address = kind.address(tmp_path)
    async with committing(address, 1, 0) as process:
        tracker = kind.make(address, wait=IN_VAIN)
        with pytest.raises(
            TrackerError, match=rf"another coordinator uses .*: process {process.pid} on host \S+, since 20.* UTC"
        ):
            await tracker.open()
        await tracker.close()
    tracker = kind.make(address)
    assert (await tracker.open()).epoch == 2
    await tracker.close()


async def until_one_waits(kind: TrackerKind, address: str, folder: Path) -> None:
    """Return once a second tracker waits for the lock that a first one holds."""

    def waits() -> bool:
        if kind.name == "postgresql":
            return databases[0].waiting(PostgresAddress(address).database)
        # A tracker that waits has opened the lock's file, too, and tries again and again.
        return names_of_open_files().count(str(folder / "state.db-lock")) == 2

    async with asyncio.timeout(DEADLINE):
        while not waits():
            await asyncio.sleep(0.01)


def names_of_open_files() -> list[str]:
    """Return the names of the files that this process has open. One may be closed while they are listed."""
    names = []
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            names.append(str(entry.readlink()))
    return names


async def test_a_second_coordinator_waits_for_the_first_to_let_go(kind: TrackerKind, tmp_path: Path) -> None:
    address = kind.address(tmp_path)
    first, second = kind.make(address), kind.make(address)
    await first.open()
    opening = asyncio.create_task(second.open())
    await until_one_waits(kind, address, tmp_path)
    await first.commit([run_added()])
    assert not opening.done(), "both hold it"
    await first.close()
    await opening
    assert await second.document(1) is not None
    await second.close()


async def test_a_coordinator_that_goes_away_while_it_waits_leaves_nothing(kind: TrackerKind, tmp_path: Path) -> None:
    address = kind.address(tmp_path)
    first, second = kind.make(address), kind.make(address)
    await first.open()
    opening = asyncio.create_task(second.open())
    await until_one_waits(kind, address, tmp_path)
    opening.cancel()
    await asyncio.wait([opening])
    assert opening.cancelled()
    await second.close()
    await first.close()
    third = kind.make(address)
    await third.open()
    await third.close()


async def test_children_do_not_inherit_the_lock(kind: TrackerKind, tmp_path: Path) -> None:
    address = kind.address(tmp_path)
    tracker = kind.make(address)
    await tracker.open()
    child = await asyncio.create_subprocess_exec("cat", stdin=subprocess.PIPE, close_fds=False)
    try:
        await tracker.close()
        tracker = kind.make(address)
        await tracker.open()
        await tracker.close()
        assert child.returncode is None
    finally:
        assert child.stdin is not None
        child.stdin.close()
        await child.wait()


# -- commits ----------------------------------------------------------------------------------------------------------


async def test_a_commit_that_fails_keeps_nothing_and_the_next_works(tracker: Tracker) -> None:
    await tracker.commit([run_added(1), recorded(number=1)])
    with pytest.raises(TrackerError):
        await tracker.commit([kept(0, b"x"), run_added(2), recorded(), run_added(3, request_id="request-1"), recorded(number=3)])
    assert await tracker.find_request("request-1") == 1
    assert [row.run_id for row in await tracker.rows(before=None, limit=10)] == [1]
    assert not await whole(tracker)
    assert not await tracker.attempts(1, 0)
    await tracker.commit([recorded(), run_added(2), kept(0, b"x")])
    assert len(await tracker.attempts(1, 0)) == 1


async def test_a_commit_is_not_torn_by_whoever_stops_waiting_for_it(tracker: Tracker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgres, "_FINISH_SECONDS", DEADLINE)  # a server that stands still must not be given up
    await tracker.commit([run_added()])
    for turns in range(12):
        numbers = range(turns * 100, turns * 100 + 100)
        commit = asyncio.create_task(tracker.commit([recorded(number=number) for number in numbers]))
        for _ in range(turns):
            await asyncio.sleep(0)
        commit.cancel()
        await asyncio.wait([commit])
        kept_of = {len(await tracker.attempts(1, number)) for number in numbers}
        assert kept_of in ({0}, {1})
    await tracker.commit([recorded(number=9_999)])


async def test_nothing_is_written_or_read_after_closing(tracker: Tracker) -> None:
    await tracker.close()
    with pytest.raises(TrackerError, match="closed"):
        await tracker.commit([run_added()])
    with pytest.raises(TrackerError, match="closed"):
        await tracker.rows(before=None, limit=1)
    with pytest.raises(TrackerError, match="closed"):
        await tracker.load(1)


async def test_names_that_databases_have_trouble_with(kind: TrackerKind, open_again: OpenAgain) -> None:
    """A host with a strange name must not keep the coordinator from going on."""
    tracker, _ = await open_again()
    names = {"h\0": "h\N{REPLACEMENT CHARACTER}", "'; DROP TABLE run; --": "'; DROP TABLE run; --", "": "", "ü" * 500: "ü" * 500}
    for number, name in enumerate(names):
        await tracker.commit([run_added(number + 1), recorded(run_id=number + 1, host=name, host_name=name)])
        await tracker.commit([assigned(1, run_id=number + 1, host=name, host_name=name)])
    for number, name in enumerate(names.values()):
        (entry,) = await tracker.attempts(number + 1, 0)
        stored = await tracker.load(number + 1)
        assert stored is not None
        assert (entry.host, entry.host_name) == (stored.in_flight[0].host, stored.in_flight[0].host_name) == (name, name)


async def test_offsets_that_nobody_has_written_are_passed_over(tracker: Tracker) -> None:
    await tracker.commit([run_added(), kept(2**63 - 3, b"abc"), kept(2**64 - 1, b"x"), kept(2**63 - 10, b"abc")])
    assert await whole(tracker) == [(2**63 - 10, b"abc")]
    assert await tracker.output(1, 0, 1, 1, 2**64 - 1, 10) == []


# -- how much is kept -------------------------------------------------------------------------------------------------


@pytest.fixture
async def small(kind: TrackerKind, tmp_path: Path) -> AsyncIterator[Tracker]:
    """A tracker that keeps 100,000 bytes of output of each run."""
    tracker = kind.make(kind.address(tmp_path), output_limit=100_000)
    await tracker.open()
    await tracker.commit([run_added(1), run_added(2)])
    yield tracker
    await tracker.close()


async def sizes(tracker: Tracker, run_id: int, numbers: range) -> list[int]:
    return [sum(len(data) for _, data in await whole(tracker, run_id=run_id, number=number)) for number in numbers]


async def test_the_oldest_output_of_a_run_goes_first(small: Tracker) -> None:
    await small.commit([kept(0, bytes(90_000), run_id=2), recorded(run_id=2)])
    for number in range(25):
        await small.commit(
            [kept(0, bytes(6_000), number=number), kept(6_000, bytes(4_000), number=number), recorded(number=number)]
        )
        total = sum(await sizes(small, 1, range(number + 1)))
        assert total == 10_000 * (number + 1) if number < 10 else 85_000 < total <= 100_000
    assert await sizes(small, 1, range(16, 25)) == [10_000] * 9
    assert await sizes(small, 1, range(14)) == [0] * 14
    assert await sizes(small, 2, range(1)) == [90_000]


async def test_output_that_comes_twice_counts_once(small: Tracker) -> None:
    await small.commit([kept(0, bytes(60_000)), recorded()])
    for length in (1, 20_000, 20_000, 30_000, 30_000, 10_000):
        await small.commit([kept(0, bytes(length), number=1)])
    await small.commit([recorded(number=1)])
    assert await sizes(small, 1, range(2)) == [60_000, 30_000]


async def test_output_of_attempts_in_flight_stays(small: Tracker) -> None:
    """A generator's output is needed whole when it ends, and from then on for as long as the run is kept."""
    await small.commit([assigned(0), kept(0, b"[" * 1_000)])
    for number in range(1, 30):
        await small.commit([kept(0, bytes(10_000), number=number), recorded(number=number)])
    await small.commit([kept(1_000, b"]" * 1_000), ended(Outcome.SUCCEEDED, State.COMPLETED), TasksGenerated(1, 0, 1, 2)])
    for number in range(30, 60):
        await small.commit([kept(0, bytes(10_000), number=number), recorded(number=number)])
    assert await sizes(small, 1, range(1)) == [0]
    stored = await small.load(1)
    assert stored is not None
    assert stored.growths == [Growth(2, b"[" * 1_000 + b"]" * 1_000, 0, 1)]


async def test_a_lost_tracker_is_lost_for_good(kind: TrackerKind, open_again: OpenAgain, tmp_path: Path) -> None:
    """A coordinator whose lock is gone does not know it. The epoch alone keeps it from writing."""
    first, before = await open_again()
    await first.commit([run_added(1)])
    await lose_lock(kind, first, tmp_path)
    second, after = await open_again()
    assert (after.tracker_id, after.epoch) == (before.tracker_id, before.epoch + 1)
    for _ in range(2):
        with pytest.raises(LostTracker, match=rf"taken over by another coordinator: process {os.getpid()} on "):
            await first.commit([run_added(2)])
        with pytest.raises(LostTracker):
            await first.delete([1], 10)
    assert [row.run_id for row in await second.rows(before=None, limit=10)] == [1]
    await second.commit([run_added(2)])


async def lose_lock(kind: TrackerKind, tracker: Tracker, folder: Path) -> None:
    """Take a tracker's lock away behind its back."""
    if kind.name == "sqlite":
        tracker._file.held.release()  # type: ignore[attr-defined]
    else:
        # Only the session that holds the lock can let it go.
        await tracker._writer.execute("SELECT pg_advisory_unlock_all()")  # type: ignore[attr-defined]
