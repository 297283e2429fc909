"""The suite's second part: the output of tasks, after their end and while they run."""

from __future__ import annotations

from pathlib import Path

import pytest
from executor_harness import Harness, Told, eventually
from support.task_specs import python, shell

from daggyr.v1.task_pb2 import STDERR, STDOUT, OutputStream, OutputSummary

pytestmark = pytest.mark.asyncio(loop_scope="session")

KEPT = 1024 * 1024  # bytes a stream
LONG = 3_000_000
WRITES = """
import os
for i in range(0, {size} // 10, 1000):
    os.write({stream}, b"".join(b"%09d\\n" % j for j in range(i, i + 1000)))
"""


def numbered(size: int) -> bytes:
    """Return what WRITES writes: each few bytes tell their own offset."""
    return b"".join(b"%09d\n" % i for i in range(size // 10))


def summary(told: Told, stream: OutputStream) -> OutputSummary:
    return told.result.stdout if stream == STDOUT else told.result.stderr


@pytest.mark.given(shell("echo out; echo err >&2; printf more"))
async def test_BothStreamsArriveApart(told: Told) -> None:
    assert (told.output(STDOUT), told.output(STDERR)) == (b"out\nmore", b"err\n")
    assert (told.result.stdout.size_bytes, told.result.stderr.size_bytes) == (8, 4)
    assert (told.result.stdout.cut_bytes, told.result.stderr.cut_bytes) == (0, 0)


@pytest.mark.given(shell(":"))
async def test_NoOutputIsNoChunk(told: Told) -> None:
    assert told.pieces == {STDOUT: {}, STDERR: {}}
    assert told.result.stdout.size_bytes == 0


@pytest.mark.given(shell("echo why >&2; exit 1"))
async def test_OutputOfFailedAttemptsArrives(told: Told) -> None:
    assert (told.outcome, told.output(STDERR)) == ("FAILED", b"why\n")


@pytest.mark.given(python("import os\nos.write(1, bytes(range(256)) * 16)"))
async def test_AnyBytesArrive(told: Told) -> None:
    assert told.output() == bytes(range(256)) * 16


@pytest.mark.given(
    lambda stream: python(f"import os\nleft = {KEPT}\nwhile left: left -= os.write({stream}, b'x' * min(left, 65536))")
)
@pytest.mark.parametrize("stream", [STDOUT, STDERR], ids=["stdout", "stderr"])
async def test_UpToTheLimitAllIsKept(told: Told, stream: OutputStream) -> None:
    assert len(told.output(stream)) == KEPT
    assert summary(told, stream) == OutputSummary(size_bytes=KEPT)


@pytest.mark.given(lambda stream: python(WRITES.format(size=LONG, stream=stream)))
@pytest.mark.parametrize("stream", [STDOUT, STDERR], ids=["stdout", "stderr"])
async def test_AboveTheLimitHeadAndTailAreKept(told: Told, stream: OutputStream) -> None:
    size = LONG
    assert told.outcome == "SUCCEEDED"
    cut = summary(told, stream)
    assert cut.size_bytes == size
    assert size - cut.cut_bytes <= KEPT
    expected = numbered(size)
    head, tail = cut.cut_offset, size - cut.cut_offset - cut.cut_bytes
    assert min(head, tail) >= KEPT // 4, "both the beginning and the end tell what happened"
    assert told.output(stream) == expected[:head] + expected[-tail:]
    pieces = told.pieces[stream]
    assert all(data == expected[offset : offset + len(data)] for offset, data in pieces.items())


@pytest.mark.given(python(WRITES.format(size=LONG, stream=1), whole_stdout_bytes=64 * 1024 * 1024))
async def test_WholeOutputIsNotCut(told: Told) -> None:
    assert told.result.stdout == OutputSummary(size_bytes=LONG)
    assert told.output() == numbered(LONG)


@pytest.mark.given(python(WRITES.format(size=LONG, stream=1), whole_stdout_bytes=2_000_000))
async def test_WholeOutputAboveItsBoundIsCutAndSaysSo(told: Told) -> None:
    assert told.result.stdout.size_bytes == LONG
    assert told.result.stdout.cut_bytes >= 1_000_000


# Each line has a limit of `whole_stdout_bytes`, how much is written, and how many bytes of each end are kept.
LIMITS = [
    pytest.param(1, 5, 0, 1, id="one byte"),
    pytest.param(2, 5, 1, 1, id="two bytes"),
    pytest.param(7, 20, 3, 4, id="an odd limit"),
    pytest.param(7, 6, 6, 0, id="one less than the limit"),
    pytest.param(7, 7, 7, 0, id="exactly the limit"),
    pytest.param(7, 8, 3, 4, id="one more than the limit"),
    pytest.param(7, 0, 0, 0, id="nothing written"),
    pytest.param(0, KEPT, KEPT, 0, id="no limit given, exactly as much as is kept"),
    pytest.param(0, KEPT + 1, KEPT // 2, KEPT // 2, id="no limit given, one more"),
    pytest.param(KEPT + 1, KEPT + 1, KEPT + 1, 0, id="whole, exactly the limit"),
    pytest.param(KEPT + 1, KEPT + 2, KEPT // 2, KEPT // 2, id="whole, one more"),
    pytest.param(2**64 - 1, KEPT + 2, KEPT + 2, 0, id="the highest limit of the contract"),
]


WRITES_BOTH = """
import os, sys
for stream in (1, 2):
    left = memoryview(("ä" * int(sys.argv[1])).encode()[: int(sys.argv[1])])
    while left: left = left[os.write(stream, left) :]
"""


@pytest.mark.given(*[python(WRITES_BOTH, str(each.values[1]), whole_stdout_bytes=each.values[0]) for each in LIMITS])
async def test_AtOddLimitsTheSameBytesAreKept(all_told: list[Told]) -> None:
    """The limit is that of standard output. Of standard error, as much is kept as without it."""
    for (limit, size, head, tail), name, one in zip(
        [each.values for each in LIMITS], [each.id for each in LIMITS], all_told, strict=True
    ):
        assert isinstance(size, int) and isinstance(head, int) and isinstance(tail, int)
        written = ("ä" * size).encode()[:size]  # mostly, the kept head ends within a character
        cut = size - head - tail
        expected = OutputSummary(size_bytes=size, cut_offset=head if cut else 0, cut_bytes=cut)
        assert (one.outcome, one.result.stdout) == ("SUCCEEDED", expected), (name, limit)
        assert one.output() == written[:head] + written[size - tail :], name
        if size <= KEPT:
            assert (one.result.stderr, one.output(STDERR)) == (OutputSummary(size_bytes=size), written), name
        else:
            assert one.result.stderr.cut_bytes == size - KEPT, name


@pytest.mark.given(
    python("import os\nos.write(1, b'x' * 3_000_000)\nos.truncate(1, 4)\nos.write(1, b'y')\nos.write(2, b'z')\nos.truncate(2, 0)")
)
async def test_WhatATaskTruncatesIsGone(told: Told) -> None:
    """Output that a task truncates counts as not written. What the task writes next goes on from there."""
    assert (told.output(), told.result.stdout) == (b"xxxxy", OutputSummary(size_bytes=5))
    assert (told.output(STDERR), told.result.stderr) == (b"", OutputSummary())


async def test_FollowPassesOverWhatIsCutAndNothingElse(executor: Harness, tmp_path: Path) -> None:
    """Following a long stream yields both of its ends; following a stream that is wanted whole yields all of it."""
    size = 3_000_000
    wait = "\nimport sys, time\nopen(sys.argv[1] + '/written', 'w').close()\n"
    wait += "while not os.path.exists(sys.argv[1] + '/gate'): time.sleep(0.02)"
    for whole in (0, size):
        folder = tmp_path / str(whole)
        folder.mkdir()
        key = await executor.give_one(python(WRITES.format(size=size, stream=1) + wait, str(folder), whole_stdout_bytes=whole))
        await executor.started(key)
        await eventually((folder / "written").exists)
        expected, followed, missing = numbered(size), 0, 0
        async for chunk in executor.executor.follow(executor.reports.of(key).host, key, STDOUT, 0):
            assert chunk.data == expected[chunk.offset : chunk.offset + len(chunk.data)]
            missing += chunk.offset - followed
            followed = chunk.offset + len(chunk.data)
            if followed == size:
                (folder / "gate").touch()
        assert (followed, missing) == (size, 0 if whole else size - KEPT)
        await executor.ends(key)


async def test_FollowTellsWhileItRuns(executor: Harness, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    key = await executor.give_one(shell('echo one; until [ -e "$1" ]; do sleep 0.02; done; echo two', str(gate)))
    await executor.started(key)
    followed = b""
    async for chunk in executor.executor.follow(executor.reports.of(key).host, key, STDOUT, 0):
        assert chunk.offset == len(followed)
        followed += chunk.data
        assert executor.reports.of(key).results == [] or gate.exists()
        if followed == b"one\n":
            gate.touch()
    assert followed.startswith(b"one\n")
    told = await executor.ends(key)
    assert told.output() == b"one\ntwo\n", "followed or not, the whole output comes with the result"


async def test_FollowBeginsAtAnOffset(executor: Harness, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    key = await executor.give_one(shell('echo 0123456789 >&2; until [ -e "$1" ]; do sleep 0.02; done', str(gate)))
    await executor.started(key)
    chunks = executor.executor.follow(executor.reports.of(key).host, key, STDERR, 4)
    chunk = await anext(chunks)
    assert (chunk.offset, chunk.data) == (4, b"456789\n")
    await chunks.aclose()  # type: ignore[attr-defined]
    gate.touch()
    await executor.ends(key)


async def test_FollowAfterTheEndEnds(executor: Harness) -> None:
    key = await executor.give_one(shell("echo one"))
    await executor.ends(key)
    assert await executor.followed(key) == []


async def test_ManyFollowOne(executor: Harness, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    key = await executor.give_one(shell('echo one; until [ -e "$1" ]; do sleep 0.02; done', str(gate)))
    await executor.started(key)
    host = executor.reports.of(key).host
    followers = [executor.executor.follow(host, key, STDOUT, 0) for _ in range(5)]
    assert [(await anext(chunks)).data for chunks in followers] == [b"one\n"] * 5
    gate.touch()
    for chunks in followers:
        assert [chunk async for chunk in chunks] == []
    await executor.ends(key)
