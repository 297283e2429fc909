"""The suite's second part: what tasks write, after their end and while they run."""

from __future__ import annotations

from pathlib import Path

import pytest
from executor_harness import Harness, Told, python, shell

from daggyr.v1.task_pb2 import STDERR, STDOUT, OutputStream, OutputSummary

pytestmark = pytest.mark.asyncio(loop_scope="session")

KEPT = 1024 * 1024  # bytes a stream
WRITES = """
import os
for i in range(0, {size} // 10, 1000):
    os.write({stream}, b"".join(b"%09d\\n" % j for j in range(i, i + 1000)))
"""


def numbered(size: int) -> bytes:
    """What WRITES writes: bytes that tell where they stand."""
    return b"".join(b"%09d\n" % i for i in range(size // 10))


def summary(told: Told, stream: OutputStream) -> OutputSummary:
    return told.result.stdout if stream == STDOUT else told.result.stderr


async def test_BothStreamsArriveApart(executor: Harness) -> None:
    told = await executor.run_one(shell("echo out; echo err >&2; printf more"))
    assert (told.output(STDOUT), told.output(STDERR)) == (b"out\nmore", b"err\n")
    assert (told.result.stdout.size_bytes, told.result.stderr.size_bytes) == (8, 4)
    assert (told.result.stdout.cut_bytes, told.result.stderr.cut_bytes) == (0, 0)


async def test_NoOutputIsNoChunk(executor: Harness) -> None:
    told = await executor.run_one(shell(":"))
    assert told.pieces == {STDOUT: {}, STDERR: {}}
    assert told.result.stdout.size_bytes == 0


async def test_OutputOfFailedAttemptsArrives(executor: Harness) -> None:
    told = await executor.run_one(shell("echo why >&2; exit 1"))
    assert (told.outcome, told.output(STDERR)) == ("FAILED", b"why\n")


async def test_AnyBytesArrive(executor: Harness) -> None:
    told = await executor.run_one(python("import os\nos.write(1, bytes(range(256)) * 16)"))
    assert told.output() == bytes(range(256)) * 16


@pytest.mark.parametrize("stream", [STDOUT, STDERR], ids=["stdout", "stderr"])
async def test_UpToTheLimitAllIsKept(executor: Harness, stream: OutputStream) -> None:
    told = await executor.run_one(
        python(f"import os\nleft = {KEPT}\nwhile left: left -= os.write({stream}, b'x' * min(left, 65536))")
    )
    assert len(told.output(stream)) == KEPT
    assert summary(told, stream) == OutputSummary(size_bytes=KEPT)


@pytest.mark.parametrize("stream", [STDOUT, STDERR], ids=["stdout", "stderr"])
async def test_AboveTheLimitHeadAndTailAreKept(executor: Harness, stream: OutputStream) -> None:
    size = 3_000_000
    told = await executor.run_one(python(WRITES.format(size=size, stream=stream)))
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


async def test_WholeOutputIsNotCut(executor: Harness) -> None:
    size = 3_000_000
    told = await executor.run_one(python(WRITES.format(size=size, stream=1), whole_stdout_bytes=64 * 1024 * 1024))
    assert told.result.stdout == OutputSummary(size_bytes=size)
    assert told.output() == numbered(size)


async def test_WholeOutputAboveItsBoundIsCutAndSaysSo(executor: Harness) -> None:
    told = await executor.run_one(python(WRITES.format(size=3_000_000, stream=1), whole_stdout_bytes=2_000_000))
    assert told.result.stdout.size_bytes == 3_000_000
    assert told.result.stdout.cut_bytes >= 1_000_000


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
