"""A postgres tracker whose connection breaks at a COMMIT: before the server has it, or before its answer comes."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from postgres_trackers import opened, run_ids, until_kept
from support.waiting import DEADLINE
from tracker_records import recorded, run_added

from daggyr_server.core.records import Record
from daggyr_server.trackers.base import LostTracker, Tracker, TrackerError
from daggyr_server.trackers.sql.postgres.address import PostgresAddress


class Wire:
    """A proxy between a tracker and its server that cuts a connection at its next COMMIT, before it or before its answer."""

    def __init__(self, real: Path) -> None:
        self._real = real
        self.cut: str | None = None  # "before", "after"
        self._relays: set[asyncio.Task[object]] = set()

    async def relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._relays.add(task)
        server_reader, server_writer = await asyncio.open_unix_connection(self._real)
        back = asyncio.create_task(self._back(server_reader, writer))
        try:
            while data := await reader.read(65_536):
                if b"COMMIT" in data and self.cut is not None:
                    how, self.cut = self.cut, None
                    back.cancel()
                    await asyncio.wait([back])
                    if how == "after":
                        server_writer.write(data)
                        assert b"COMMIT" in await server_reader.read(65_536)
                    return
                server_writer.write(data)
        finally:
            back.cancel()
            await asyncio.wait([back])
            for end in (server_writer, writer):
                end.close()

    async def ended(self) -> None:
        """Return once every connection has been closed at both ends."""
        await asyncio.gather(*self._relays)

    async def _back(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65_536):
            writer.write(data)
        writer.close()


@contextlib.asynccontextmanager
async def over_a_wire(address: str) -> AsyncIterator[tuple[Wire, Tracker]]:
    with tempfile.TemporaryDirectory(prefix="daggyr-wire-") as folder:
        host = PostgresAddress(address).host
        wire = Wire(Path(host) / ".s.PGSQL.5432")
        listening = await asyncio.start_unix_server(wire.relay, Path(folder) / ".s.PGSQL.5432")
        async with listening:
            async with opened(address.replace(host, folder)) as tracker:
                yield wire, tracker
            await wire.ended()


@pytest.mark.parametrize("cut", ["before", "after"])
async def test_a_commit_whose_answer_was_lost_is_kept_once(address: str, cut: str) -> None:
    async with over_a_wire(address) as (wire, tracker):
        await tracker.commit([run_added(1)])
        records: list[Record] = [run_added(2), recorded(run_id=2)]
        wire.cut = cut
        with pytest.raises(TrackerError, match="cannot be used"):
            await tracker.commit(records)
        assert wire.cut is None
        await until_kept(tracker, [*records, recorded(run_id=2, number=1)])
        await tracker.commit([recorded(run_id=2, number=2)])
        assert await run_ids(tracker) == [1, 2]
        assert [len(await tracker.attempts(2, number)) for number in range(3)] == [1, 1, 1]


async def test_other_records_after_a_commit_that_was_kept_are_refused(address: str) -> None:
    """The coordinator believes that the first commit was not kept. It must start again from what is durable."""
    async with over_a_wire(address) as (wire, tracker):
        wire.cut = "after"
        with pytest.raises(TrackerError):
            await tracker.commit([run_added(1)])
        with pytest.raises(LostTracker, match="whose answer was lost"):
            await until_kept(tracker, [run_added(2)])
        with pytest.raises(LostTracker):
            await tracker.commit([run_added(1)])
    async with opened(address) as tracker:
        assert await run_ids(tracker) == [1]


async def test_deleting_goes_on_after_a_lost_answer(address: str) -> None:
    async with over_a_wire(address) as (wire, tracker):
        records = [run_added(1)]
        await tracker.commit([run_added(2), run_added(3)])
        wire.cut = "after"
        with pytest.raises(TrackerError):
            await tracker.commit(records)
        while await delete_again(tracker, 2):
            pass
        wire.cut = "after"
        while await delete_again(tracker, 3):
            pass
        await until_kept(tracker, records)
        assert await run_ids(tracker) == [1]


async def delete_again(tracker: Tracker, run_id: int) -> bool:
    async with asyncio.timeout(DEADLINE):
        while True:
            try:
                return await tracker.delete([run_id], 100)
            except LostTracker:
                raise
            except TrackerError:
                await asyncio.sleep(0.02)
