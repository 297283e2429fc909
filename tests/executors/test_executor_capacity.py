"""The suite's fourth part: attempts that are sent ahead wait for resources, start in order, and can be recalled."""

from __future__ import annotations

from pathlib import Path

import pytest
from executor_harness import Harness
from executor_kinds import CORES, ExecutorKind
from support.task_specs import shell, spec

from daggyr.v1.task_pb2 import AssignmentBatch

pytestmark = pytest.mark.asyncio(loop_scope="session")

# The task writes a line when it begins and when it ends. It lasts long enough for another task to begin meanwhile, if that were
# allowed.
COUNTED = 'echo + >> "$1/log"; sleep 0.05; echo - >> "$1/log"'
WAITING = 'echo . >> "$1/started"; until [ -e "$1/gate" ]; do sleep 0.02; done'


def most_at_once(log: Path) -> int:
    """Return the largest number of tasks that ran at the same time."""
    most = now = 0
    for line in log.read_text().split():
        now += 1 if line == "+" else -1
        most = max(most, now)
    return most


async def test_ResourcesAreNotOversubscribed(executor: Harness, tmp_path: Path) -> None:
    # The first tasks wait for each other.
    meet = f'until [ "$(grep -c + "$1/log")" -ge {CORES} ]; do sleep 0.02; done'
    told = await executor.run(*[shell(f'echo + >> "$1/log"; {meet}; sleep 0.05; echo - >> "$1/log"', str(tmp_path))] * 12)
    assert {one.outcome for one in told} == {"SUCCEEDED"}
    assert most_at_once(tmp_path / "log") == CORES, "all slots are used, and no more"


async def test_OneThatNeedsAllRunsAlone(executor: Harness, tmp_path: Path) -> None:
    small = shell(COUNTED, str(tmp_path))
    whole = shell(
        'echo + >> "$1/log"; echo + >> "$1/log"; sleep 0.05; echo - >> "$1/log"; echo - >> "$1/log"',
        str(tmp_path),
        resources={"cores": CORES},
    )
    told = await executor.run(small, whole, small, small, whole, small)
    assert {one.outcome for one in told} == {"SUCCEEDED"}
    assert most_at_once(tmp_path / "log") == CORES


async def test_OtherResourcesCountToo(executor: Harness, tmp_path: Path) -> None:
    memory = executor.reports.hosts[await executor.host()].resources["memory_mb"]
    told = await executor.run(*[shell(COUNTED, str(tmp_path), resources={"cores": 1, "memory_mb": memory // 2 + 1})] * 4)
    assert {one.outcome for one in told} == {"SUCCEEDED"}
    assert most_at_once(tmp_path / "log") == 1


async def test_TheyStartInTheOrderInWhichTheyCame(kind: ExecutorKind, executor: Harness, tmp_path: Path) -> None:
    many = min(20, kind.many)
    each = [shell('echo $DAGGYR_TASK_ID >> "$1/log"', str(tmp_path), resources={"cores": CORES})] * many
    await executor.run(*each)
    assert (tmp_path / "log").read_text().split() == [f"task-{number}" for number in range(many)]


async def test_RecallReturnsWhatHasNotStarted(executor: Harness, tmp_path: Path) -> None:
    keys = await executor.give(*[shell(WAITING, str(tmp_path))] * (CORES + 3))
    for key in keys[:CORES]:
        await executor.started(key)
    executor.recall(*keys)
    returned = await executor.ended(keys[CORES:])
    assert [told.outcome for told in returned] == ["RETURNED"] * 3
    assert not any(told.result.HasField("start_time") or told.starts for told in returned)
    assert [executor.reports.of(key).results for key in keys[:CORES]] == [[]] * CORES, "those that have started go on"
    (tmp_path / "gate").touch()
    assert {told.outcome for told in await executor.ended(keys[:CORES])} == {"SUCCEEDED"}
    assert (tmp_path / "started").read_text() == ".\n" * CORES


async def test_StartIsIdempotent(executor: Harness, tmp_path: Path) -> None:
    """A batch that is given again starts nothing again, while some of it runs and some of it waits."""
    host = await executor.host()
    batch = executor.batch(*[shell(WAITING, str(tmp_path))] * (CORES + 2))
    keys = executor.start(host, batch)
    executor.start(host, batch)
    for key in keys[:CORES]:
        await executor.started(key)
    executor.start(host, batch)
    with_more = AssignmentBatch()
    with_more.CopyFrom(batch)
    new = executor.batch(spec("/bin/echo", "new"))
    with_more.templates.extend(new.templates)
    with_more.assignments.extend(new.assignments)
    with_more.assignments[-1].template = len(batch.templates)
    keys = executor.start(host, with_more)
    (tmp_path / "gate").touch()
    told = await executor.ended(keys)  # the fixture fails if there was a second result or a second start
    assert {one.outcome for one in told} == {"SUCCEEDED"}
    assert told[-1].text == "new\n"
    assert (tmp_path / "started").read_text() == ".\n" * (CORES + 2)
