"""What the noop executor promises beyond the suite."""

from __future__ import annotations

import msgspec
import pytest
from executor_harness import Harness
from executor_kinds import opened
from support.task_specs import spec

from daggyr.v1.task_pb2 import AttemptKey, Placement
from daggyr_server.executors.loader import find_executor

NOOP = find_executor("noop")


async def test_ItDoesNothing() -> None:
    async with opened(NOOP) as harness:
        told = await harness.run(spec("no-such-program"), spec("/bin/false"), spec("/bin/echo", "x"))
        assert [one.outcome for one in told] == ["SUCCEEDED"] * 3
        assert told[2].output() == b""


async def test_WhatWasPlacedBeforeIsDone() -> None:
    async with opened(NOOP, pool="dry") as harness:
        keys = [AttemptKey(run_id=1, task_number=number, attempt=2) for number in range(3)]
        for key in keys:
            harness.reports.of(key).host = "dry"
        harness.executor.recover([(key, Placement(host="dry")) for key in keys])
        assert [told.outcome for told in await harness.ended(keys)] == ["SUCCEEDED"] * 3


async def test_AfterClosingItTellsNothing() -> None:
    async with opened(NOOP) as harness:
        (key,) = await harness.give(spec("/bin/true"))
        await harness.executor.close()
        await harness.executor.close()
        other: Harness
        async with opened(NOOP) as other:  # its answer comes later than that of the first one would
            await other.run_one(spec("/bin/true"))
        assert harness.reports.of(key).results == []


@pytest.mark.parametrize("workers", [0, -1, 65_537, "2", 1.5])
def test_ItsSettingsAreChecked(workers: object) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"workers": workers}, NOOP.Settings)
