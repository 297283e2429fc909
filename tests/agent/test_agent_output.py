"""What attempts write: kept, cut, sent in pieces, removed."""

from __future__ import annotations

import os
import random
import signal
from contextlib import suppress
from pathlib import Path

import pytest
from agent_program import AgentProcess, StartAgent, Turnstile, eventually
from scripted_coordinator import Coordinator, key
from support.task_specs import python, spec

from daggyr.v1.task_pb2 import STDERR, STDOUT, SUCCEEDED

pytestmark = pytest.mark.usefixtures("agent")

MIB = 1 << 20


def on_disk(folder: Path) -> int:
    """Bytes that the files of a folder take on disk."""
    return sum(entry.stat().st_blocks * 512 for entry in os.scandir(folder))


async def test_binary_output_stays_as_it_is(coordinator: Coordinator, tmp_path: Path) -> None:
    data = bytes(range(256)) * 1000 + b"\xff\xfe\0\0 no newline"
    (tmp_path / "data").write_bytes(data)
    session = await coordinator.session()
    await session.assign((key(), spec("sh", "-c", "cat data; cat data >&2", working_directory=tmp_path)))
    await coordinator.result(key())
    assert coordinator.of(key()).output() == data
    assert coordinator.of(key()).output(STDERR) == data


async def test_a_mebibyte_is_kept_whole_and_comes_in_pieces(coordinator: Coordinator, tmp_path: Path) -> None:
    data = random.Random(1).randbytes(MIB)
    (tmp_path / "data").write_bytes(data)
    session = await coordinator.session()
    await session.assign((key(), spec("cat", "data", working_directory=tmp_path)))
    result = await coordinator.result(key())
    assert (result.stdout.size_bytes, result.stdout.cut_bytes) == (MIB, 0)
    told = coordinator.of(key())
    assert told.output() == data
    assert max(map(len, told.written[STDOUT].values())) <= 256 * 1024


async def test_of_more_the_first_and_the_last_half_mebibyte_are_kept(coordinator: Coordinator, tmp_path: Path) -> None:
    data = random.Random(2).randbytes(3 * MIB + 4321)
    (tmp_path / "data").write_bytes(data)
    session = await coordinator.session()
    await session.assign((key(), spec("cat", "data", working_directory=tmp_path)))
    summary = (await coordinator.result(key())).stdout
    assert (summary.size_bytes, summary.cut_offset, summary.cut_bytes) == (len(data), MIB // 2, len(data) - MIB)
    assert coordinator.of(key()).output() == data[: MIB // 2] + data[-MIB // 2 :]
    offsets = coordinator.of(key()).written[STDOUT]
    assert all(data[offset : offset + len(piece)] == piece for offset, piece in offsets.items())


async def test_a_gigabyte_fills_neither_disk_nor_memory(agent: AgentProcess, coordinator: Coordinator) -> None:
    """The task goes on whenever the agent has caught up, however long that takes."""
    session = await coordinator.session()
    turnstile, pieces = Turnstile(agent.home), 16
    piece = f"head -c {(1 << 30) // pieces} /dev/zero; {turnstile.wait}"
    script = f"n=0; while [ $n -lt {pieces} ]; do {piece}; n=$((n + 1)); done; echo the end; sleep 600"
    await session.assign((key(), spec("sh", "-c", script)))
    await coordinator.start_of(key())
    output = agent.state / "output"

    def written() -> int:
        return sum(entry.stat().st_size for entry in os.scandir(output))

    for number in range(1, pieces + 1):
        await eventually(lambda size=number * (1 << 30) // pieces: written() == size, "the task has written more")  # type: ignore[misc]
        await eventually(lambda: on_disk(output) < 4 * MIB, "the middle is off the disk while the task runs")
        turnstile.let()
    await eventually(lambda: written() == (1 << 30) + 8, "the task has written everything")
    turnstile.close()
    await session.cancel(key(), grace=0)
    summary = (await coordinator.result(key())).stdout
    assert (summary.size_bytes, summary.cut_bytes) == ((1 << 30) + 8, (1 << 30) + 8 - MIB)
    assert coordinator.of(key()).output().endswith(b"\0the end\n")
    assert int(agent.status("VmHWM").split()[0]) < 100 * 1024  # kB


async def test_a_generators_output_is_kept_whole_up_to_its_limit(coordinator: Coordinator) -> None:
    session = await coordinator.session()
    writes = "import sys; sys.stdout.write('x' * int(sys.argv[1]))"
    limit = 5 * MIB
    await session.assign(
        (key(0), python(writes, str(limit), whole_stdout_bytes=limit)),
        (key(1), python(writes, str(limit + 1), whole_stdout_bytes=limit)),
        (key(2), python(writes, "101", whole_stdout_bytes=100)),
    )
    whole, beyond, small = await coordinator.results(*(key(n) for n in range(3)))
    assert whole.stdout.cut_bytes == 0
    assert coordinator.of(key(0)).output() == b"x" * limit
    assert beyond.outcome == SUCCEEDED
    assert (beyond.stdout.size_bytes, beyond.stdout.cut_bytes) == (limit + 1, limit + 1 - MIB)
    assert small.stdout.cut_bytes > 0


async def test_output_is_removed_when_its_result_is_acknowledged_and_not_before(
    agent: AgentProcess, coordinator: Coordinator
) -> None:
    session = await coordinator.session()
    coordinator.acknowledging = False
    await session.assign((key(0), spec("echo", "kept")), (key(1), spec("true")))
    await coordinator.results(key(0), key(1))
    kept = [entry for entry in (agent.state / "output").iterdir() if entry.read_bytes()]
    assert [entry.read_text() for entry in kept] == ["kept\n"]
    await session.acknowledge(session.batches[-1].sequence)
    await eventually(lambda: not kept[0].exists(), "the output was removed")


async def test_files_of_attempts_that_wrote_nothing_are_used_again(agent: AgentProcess, coordinator: Coordinator) -> None:
    session = await coordinator.session()
    keys = [key(n) for n in range(50)]
    await session.assign(*((k, spec("true")) for k in keys))
    await coordinator.results(*keys)
    assert len(list((agent.state / "output").iterdir())) <= 4
    await session.assign((key(50), spec("echo", "mine")))
    await coordinator.result(key(50))
    assert coordinator.of(key(50)).output() == b"mine\n"


@pytest.mark.parametrize(
    "deed",
    [
        "import fcntl, os; fcntl.fcntl({fd}, fcntl.F_SETFL, 0); os.lseek({fd}, 5, 0)",
        "import fcntl, os; fcntl.fcntl({fd}, fcntl.F_SETFL, os.O_APPEND | os.O_NOATIME)",  # O_DIRECT is not everywhere
        "import os; os.unlink(os.readlink('/proc/self/fd/{fd}'))",
        "import os; os.fchmod({fd}, 0)",
    ],
    ids=["place", "flags", "unlink", "mode"],
)
@pytest.mark.parametrize("fd", [1, 2])
async def test_what_is_done_to_an_output_is_not_the_next_ones_trouble(coordinator: Coordinator, deed: str, fd: int) -> None:
    """Also where nothing was written: the next attempt has files that are as they should be, and all its output is there."""
    look = "import fcntl, os; found = os.fstat({fd}); flags = fcntl.fcntl({fd}, fcntl.F_GETFL)"
    look += "; os.write({fd}, f'{{found.st_mode:o}} {{flags & os.O_NOATIME}} {{flags & os.O_APPEND > 0}}\\n'.encode())"
    session = await coordinator.session()
    for n in range(0, 8, 2):
        await session.assign((key(n), python(deed.format(fd=fd))))
        assert (await coordinator.result(key(n))).outcome == SUCCEEDED
        await session.assign((key(n + 1), python(look.format(fd=fd))))
        assert (await coordinator.result(key(n + 1))).outcome == SUCCEEDED
        assert coordinator.of(key(n + 1)).output(STDOUT if fd == 1 else STDERR) == b"100600 0 True\n"


async def test_output_written_just_before_the_end_is_there(coordinator: Coordinator) -> None:
    session = await coordinator.session()
    await session.assign((key(), spec("sh", "-c", "for n in 1 2 3; do echo $n; done; kill -9 $$")))
    await coordinator.result(key())
    assert coordinator.of(key()).output() == b"1\n2\n3\n"


async def test_stale_output_of_an_earlier_process_is_removed_at_the_start(
    agent: AgentProcess, coordinator: Coordinator, start_agent: StartAgent, address: str
) -> None:
    session = await coordinator.session()
    await session.assign((key(), spec("sh", "-c", "echo lost; sleep 600")))
    await coordinator.start_of(key())
    await eventually(lambda: on_disk(agent.state / "output"), "something was written")
    agent.process.kill()
    agent.process.wait()
    for pid in agent.tasks():
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    start_agent(address)
    await coordinator.session(2)
    assert not list((agent.state / "output").iterdir())
