"""An agent whose host cannot start tasks, or keep what they write: it hands back, says why, and looks again.

It also offers no more than it can run.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import resource
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from agent_program import StartAgent, Turnstile
from scripted_coordinator import Coordinator, key
from support.dying_disk import dying_disk
from support.small_disk import SmallDisk, small_disk
from support.task_specs import spec
from support.waiting import until

from daggyr.v1.task_pb2 import RETURNED, STDERR, SUCCEEDED
from daggyr_agent.cgroup import ControlGroup
from daggyr_agent.host_pause import HostPause
from daggyr_agent.journal import Journal
from daggyr_agent.limits import most_attempts, offered
from daggyr_agent.room import LEAST_BYTES, Room


@pytest.fixture
def disk(folder: Path) -> Iterator[SmallDisk]:
    """The disk of the state folder of the agent `small`."""
    with small_disk(folder / "state-small", "size=8m,nr_inodes=1000") as disk:
        yield disk


def limited(limits: str) -> tuple[str, ...]:
    """What stands before a command, so that it has limits."""
    return "sh", "-c", f'{limits}; exec "$0" "$@"'


# -- what is offered ----------------------------------------------------------------------------------------------------


async def test_few_descriptors_offer_few_cores(start_agent: StartAgent, address: str, coordinator: Coordinator) -> None:
    start_agent(address, name="narrow", cores=50, prefix=limited("ulimit -n 64"))
    session = await coordinator.session(name="narrow")
    assert session.hello.resources["cores"] == 1
    assert "offers 1 of 50 cores" in session.hello.shortage
    assert "64 descriptors (ulimit -n)" in session.hello.shortage


async def test_the_limit_on_descriptors_is_raised_as_far_as_it_may_be(
    start_agent: StartAgent, address: str, coordinator: Coordinator
) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert hard >= 2_000
    start_agent(address, name="wide", cores=400, prefix=limited("ulimit -Sn 64"))
    session = await coordinator.session(name="wide")
    assert (session.hello.resources["cores"], session.hello.shortage) == (400, "")
    keys = [key(number) for number in range(200)]
    await session.assign(*((one, spec("sh", "-c", "echo out; read line < gate; echo err >&2")) for one in keys))
    await session.cancel(*keys, grace=0)
    await coordinator.results(*keys)


@pytest.fixture
def group() -> Iterator[Path]:
    """A control group of the test's own, for the number of processes."""
    root = next(
        (path for path in (Path("/sys/fs/cgroup/pids"), Path("/sys/fs/cgroup")) if (path / "cgroup.procs").exists()), None
    )
    if root is None or os.geteuid() != 0:
        pytest.skip("no control group can be made here")
    group = root / f"daggyr-test-{os.getpid()}"
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"no control group can be made here: {error.strerror}")
    if not (group / "pids.max").exists():
        group.rmdir()
        pytest.skip("control groups do not limit processes here")
    yield group
    for pid in (group / "cgroup.procs").read_text().split():
        os.kill(int(pid), signal.SIGKILL)
    until(lambda: not (group / "cgroup.procs").read_text(), "an empty control group")
    group.rmdir()


async def test_few_processes(start_agent: StartAgent, address: str, coordinator: Coordinator, group: Path) -> None:
    """Fewer cores are offered; what cannot be started all the same is RETURNED, until there are more processes."""
    (group / "pids.max").write_text("90")
    agent = start_agent(address, name="poor", cores=64, prefix=limited(f"echo $$ > {group}/cgroup.procs"))
    session = await coordinator.session(name="poor")
    cores = session.hello.resources["cores"]
    assert 1 <= cores < 33
    assert f"offers {cores} of 64 cores" in session.hello.shortage and "pids.max" in session.hello.shortage
    (group / "pids.max").write_text((group / "pids.current").read_text())  # there is none left
    keys = [key(number) for number in range(60)]
    await session.assign(*((one, spec("echo", "out")) for one in keys))
    results = await coordinator.results(*keys)
    assert {result.outcome for result in results} == {RETURNED}
    assert "cannot be started" in results[0].notes[0]
    await coordinator.until(lambda: session.heartbeat.HasField("fault"))
    (group / "pids.max").write_text("max")
    await coordinator.until(lambda: not session.heartbeat.HasField("fault"))
    again = [key(number, attempt=2) for number in range(60)]
    await session.assign(*((one, spec("echo", "out")) for one in again))
    assert {result.outcome for result in await coordinator.results(*again)} == {SUCCEEDED}
    agent.end()


def test_a_user_may_have_few_processes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """RLIMIT_NPROC counts the processes and threads of a user, and says nothing to root."""
    for pid, threads in ((1, 3), (2, 5)):
        for thread in range(threads):
            (tmp_path / str(pid) / "task" / str(thread)).mkdir(parents=True)
    usual = resource.getrlimit
    monkeypatch.setattr(resource, "getrlimit", lambda which: (52, 52) if which == resource.RLIMIT_NPROC else usual(which))
    monkeypatch.setattr(os, "geteuid", lambda: 1_000)
    nothing = ControlGroup(tmp_path / "missing")
    most, limit = most_attempts(50, nothing, tmp_path)
    assert (most, "ulimit -u" in limit) == ((52 - 8 - 24) // 2, True)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert most_attempts(50, nothing, tmp_path)[0] > most


def test_a_control_group_may_have_room_for_few_processes(tmp_path: Path) -> None:
    group = tmp_path / "fs" / "our"
    group.mkdir(parents=True)
    (tmp_path / "fs" / "cgroup.controllers").touch()
    (tmp_path / "membership").write_text("0::/our\n")
    (group / "pids.max").write_text("100\n")
    (group / "pids.current").write_text("56\n")
    most, limit = most_attempts(50, ControlGroup(tmp_path / "membership", tmp_path / "fs"))
    assert (most, "pids.max" in limit) == (10, True)
    assert offered({"cores": 50, "gpus": 2}, most, limit) == ({"cores": 10, "gpus": 2}, f"offers 10 of 50 cores, because {limit}")
    assert offered({"cores": 10}, most, limit) == ({"cores": 10}, "")
    (group / "pids.max").write_text("max\n")
    assert ControlGroup(tmp_path / "membership", tmp_path / "fs").processes_left() is None


# -- what is kept -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["full", "without inodes"])
async def test_a_full_disk(start_agent: StartAgent, address: str, coordinator: Coordinator, disk: SmallDisk, kind: str) -> None:
    """With many slots: `echo` is RETURNED, not FAILED, and the fault is told before the results are."""
    agent = start_agent(address, name="small", cores=64)
    session = await coordinator.session(name="small")
    (disk.fill if kind == "full" else disk.take_inodes)()
    keys = [key(number) for number in range(200)]
    await session.assign(*((one, spec("sh", "-c", 'echo "$DAGGYR_TASK_ID"; echo more >&2')) for one in keys))
    results = await coordinator.results(*keys)
    assert {result.outcome for result in results} == {RETURNED}
    assert all(result.notes for result in results)
    assert session.heartbeat.HasField("fault")
    assert session.heartbeat.fault.pause.ToTimedelta().total_seconds() > 0
    disk.clear()
    await coordinator.until(lambda: not session.heartbeat.HasField("fault"))
    again = [key(number, attempt=2) for number in range(200)]
    await session.assign(*((one, spec("sh", "-c", "echo out; echo more >&2")) for one in again))
    assert {result.outcome for result in await coordinator.results(*again)} == {SUCCEEDED}
    assert {coordinator.of(one).output() for one in again} == {b"out\n"}
    assert {coordinator.of(one).output(STDERR) for one in again} == {b"more\n"}
    assert agent.log.count("attempts are started again") >= 1


async def test_output_that_may_be_lost_is_marked(
    start_agent: StartAgent, address: str, coordinator: Coordinator, disk: SmallDisk
) -> None:
    start_agent(address, name="small")
    session = await coordinator.session(name="small")
    turnstile = Turnstile(disk.folder.parent / "home-small")
    held = spec("sh", "-c", f"{turnstile.wait}; echo important; true")
    document = spec("sh", "-c", f"{turnstile.wait}; echo '{{}}'; true", whole_stdout_bytes=1_000_000)
    await session.assign((key(0), held), (key(1), document))
    await coordinator.start_of(key(0))
    await coordinator.start_of(key(1))
    disk.fill()
    turnstile.let(2)
    plain, whole = await coordinator.results(key(0), key(1))
    turnstile.close()
    assert (plain.outcome, plain.stdout.incomplete) == (SUCCEEDED, True)
    assert "may not have been kept" in plain.notes[0]
    assert (whole.outcome, whole.exit_code) == (RETURNED, 0)


async def test_files_that_may_not_grow(start_agent: StartAgent, address: str, coordinator: Coordinator) -> None:
    """RLIMIT_FSIZE, which no figure of the disk tells of."""
    agent = start_agent(address, name="short")
    session = await coordinator.session(name="short")
    _, hard = resource.prlimit(agent.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(agent.pid, resource.RLIMIT_FSIZE, (0, hard))
    await session.assign((key(0), spec("sh", "-c", "echo hello")))
    result = await coordinator.result(key(0))
    assert result.outcome == RETURNED
    assert "cannot be written" in result.notes[0]
    await coordinator.until(lambda: session.heartbeat.HasField("fault"))
    resource.prlimit(agent.pid, resource.RLIMIT_FSIZE, (hard, hard))
    await coordinator.until(lambda: not session.heartbeat.HasField("fault"))


@pytest.mark.parametrize("taken", ["output", "."], ids=["output", "all"])
async def test_a_state_folder_that_is_taken_away(
    start_agent: StartAgent, address: str, coordinator: Coordinator, taken: str
) -> None:
    """By a program that clears old files away. What runs goes on, nothing is COMPLETED without output, and the host is back."""
    agent = start_agent(address, name="cleared")
    session = await coordinator.session(name="cleared")
    await session.assign((key(0), spec("true")))
    await coordinator.result(key(0))
    identity = (agent.state / "agent-id").read_bytes()
    turnstile = Turnstile(agent.home)
    await session.assign((key(1), spec("sh", "-c", f"{turnstile.wait}; exit 3")))
    await coordinator.start_of(key(1))
    shutil.rmtree(agent.state / taken)
    await session.assign((key(2), spec("echo", "out")))
    result = await coordinator.result(key(2))
    assert result.outcome == RETURNED or coordinator.of(key(2)).output() == b"out\n"
    await coordinator.until(lambda: "attempts are started again" in agent.log)
    await session.assign((key(3), spec("echo", "again")))
    assert (await coordinator.result(key(3))).outcome == SUCCEEDED
    assert coordinator.of(key(3)).output() == b"again\n"
    turnstile.let()
    assert (await coordinator.result(key(1))).exit_code == 3
    turnstile.close()
    assert (agent.state / "agent-id").read_bytes() == identity
    assert agent.state.stat().st_mode & 0o777 == 0o700
    # It is this agent's: another one with the same folder is refused, and the next one takes up what this one left.
    with pytest.raises(BlockingIOError), (agent.state / "lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    await session.assign((key(4), spec("sh", "-c", "echo $$ > pid; sleep 600")))
    await coordinator.start_of(key(4))
    pid = int(until(lambda: (agent.home / "pid").exists() and (agent.home / "pid").read_text().strip(), "the task's process"))
    until(lambda: pid in Journal(agent.state / "journal").running, "the journal to tell of it")


def test_a_room_says_what_is_wrong(disk: SmallDisk) -> None:
    room = Room(disk.folder)
    try:
        assert (room.shortage(), room.unwritable(), room.unusable()) == (None, None, None)
        disk.fill()
        assert "is full" in (room.shortage() or "")
        assert "No space left" in (room.unwritable() or "")
        assert "No space left" in (room.unusable() or "")
        disk.clear()
        assert (room.shortage(), room.unwritable(), room.unusable()) == (None, None, None)
        disk.take_inodes()
        assert "too few inodes left for new files" in (room.shortage() or "")
        disk.clear()
    finally:
        room.close()
    assert "cannot be looked at" in (Room(disk.folder / "missing").shortage() or "")
    assert LEAST_BYTES > 0


def test_a_room_notices_a_disk_that_dies_and_the_one_that_takes_its_place(tmp_path: Path) -> None:
    with dying_disk(tmp_path / "disk") as disk:
        room = Room(disk.folder)
        try:
            assert room.failing() is None
            disk.die()
            assert room.shortage() is None, "its figures do not tell"
            assert "Input/output error" in (room.failing() or "")
            assert "Input/output error" in (room.unwritable() or "")
            disk.replace()
            assert (room.failing(), room.unwritable(), room.unusable()) == (None, None, None)
        finally:
            room.close()


# -- the pause ----------------------------------------------------------------------------------------------------------


async def test_a_pause_doubles_is_bounded_and_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """The looks follow each other, and the lengths are those that were told."""
    loop = asyncio.get_running_loop()
    told: list[float] = []
    wrong: list[str | None] = ["still"] * 12
    ended = asyncio.Event()
    monkeypatch.setattr("daggyr_agent.host_pause.SHORTEST", 0.001)
    monkeypatch.setattr("daggyr_agent.host_pause.LONGEST", 0.004)

    def changed() -> None:
        told.append(pause._length)
        if pause.reason is None:
            ended.set()

    pause = HostPause(loop, lambda: wrong.pop() if wrong else None, changed)
    pause.begin("at first")
    assert pause.fault() is not None
    pause.begin("a second reason counts no more")
    assert pause.reason == "at first"
    await ended.wait()
    assert told[:4] == [0.001, 0.002, 0.004, 0.004]
    assert set(told[4:]) == {0.004}
    assert pause.fault() is None
    pause.close()
