"""The suite's part about hosts that cannot keep what tasks write: a disk that is full, without inodes, or dying.

Each executor of its own has such a disk below all that it keeps. Every byte is kept or marked as lost, no task is SUCCEEDED whose
output went away silently, the host pauses and says why, and it comes back by itself.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from executor_harness import Harness, Told, eventually, pid_in, runs
from executor_kinds import KINDS, ExecutorKind, grouped
from support.dying_disk import dying_disk
from support.small_disk import small_disk
from support.task_specs import shell

from daggyr.v1.task_pb2 import HOST_AVAILABLE, HOST_PAUSED, STDERR, STDOUT

OUT, ERR = b"important\n", b"worse\n"
WRITES = "echo important; echo worse >&2; true"
GATED = f'echo $PPID > "$1/above"; until [ -e "$1/gate" ]; do sleep 0.02; done; {WRITES}'


@dataclass
class Disk:
    """A disk that is to fail, and how."""

    folder: Path
    breaks: Callable[[], None]
    mends: Callable[[], None]
    said: str  # of its fault, by whoever is told of it


@pytest.fixture(params=grouped(kind for kind in KINDS if kind.begin_on is not None))
def kind(request: pytest.FixtureRequest) -> ExecutorKind:
    found = request.param
    assert isinstance(found, ExecutorKind)
    return found


@pytest.fixture(params=["full", "without inodes", "dying"])
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Disk]:
    folder = tmp_path / "disk"
    if request.param == "dying":
        with dying_disk(folder) as dying:
            yield Disk(folder, dying.die, dying.replace, "Input/output error")
        return
    with small_disk(folder, "size=16m,nr_inodes=2000,mode=0700") as small:
        breaks = small.fill if request.param == "full" else small.take_inodes
        yield Disk(folder, breaks, small.clear, "")


@pytest.fixture
async def harness(kind: ExecutorKind, disk: Disk, tmp_path: Path) -> AsyncIterator[Harness]:
    home = tmp_path / "away/home"
    home.mkdir(parents=True)
    assert kind.begin_on is not None
    async with kind.begin_on(home, disk.folder) as harness:
        # An agent has files to spare from now on, which would stay on the disk that fails.
        assert (await harness.run_one(shell(":"))).outcome == "SUCCEEDED"
        yield harness
    assert harness.reports.faults == []


def is_paused(harness: Harness, words: str) -> bool:
    """Whether the host is paused and says why, with these words in it."""
    host = harness.reports.all_hosts[-1]
    return host.state == HOST_PAUSED and bool(host.fault.reason) and words in host.fault.reason


async def comes_back(harness: Harness, disk: Disk) -> None:
    """Once its disk is good again, the host takes attempts and keeps all that they write, without anybody's doing."""
    disk.mends()
    while True:
        await harness.reports.until(lambda: harness.reports.states[-1][1] == HOST_AVAILABLE)
        told = await harness.run_one(shell(WRITES))
        if told.outcome == "SUCCEEDED":
            break
        assert told.outcome == "RETURNED", told  # it was not known yet
    assert (told.output(STDOUT), told.output(STDERR)) == (OUT, ERR)
    assert not told.result.stdout.incomplete and not told.result.stderr.incomplete


def assert_nothing_is_silently_gone(told: Told) -> None:
    if told.outcome != "SUCCEEDED":
        assert told.outcome in ("RETURNED", "LOST") and told.notes, told
        return
    for stream, written, summary in ((STDOUT, OUT, told.result.stdout), (STDERR, ERR, told.result.stderr)):
        assert told.output(stream) == written or summary.incomplete, told
    assert told.notes or (told.output(STDOUT), told.output(STDERR)) == (OUT, ERR)


async def test_WhatIsGivenToAHostWithoutRoomLosesNothingSilently(harness: Harness, disk: Disk, tmp_path: Path) -> None:
    disk.breaks()
    told = await harness.run_one(shell(f'touch "$1"; {WRITES}', str(tmp_path / "ran")))
    assert_nothing_is_silently_gone(told)
    assert (told.outcome == "SUCCEEDED") == (tmp_path / "ran").exists(), told
    await harness.reports.until(lambda: is_paused(harness, disk.said))
    await comes_back(harness, disk)


async def test_WhatFailsUnderATaskTakesNothingSilently(harness: Harness, disk: Disk, tmp_path: Path) -> None:
    key = await harness.give_one(shell(GATED, str(tmp_path)))
    above = await pid_in(tmp_path / "above")
    disk.breaks()
    (tmp_path / "gate").touch()
    told = harness.reports.of(key)
    await harness.reports.until(lambda: told.results or is_paused(harness, disk.said))
    while not is_paused(harness, disk.said):  # it is noticed with the next attempt at the latest
        if harness.available():
            assert_nothing_is_silently_gone(await harness.run_one(shell(WRITES)))
        await harness.reports.until(lambda: is_paused(harness, disk.said) or harness.available())
    # What cannot even be read until the disk is good again has no end before that. What waits for the task must be over by then.
    await eventually(lambda: told.results or not runs(above))
    await comes_back(harness, disk)
    assert_nothing_is_silently_gone(await harness.ends(key))
