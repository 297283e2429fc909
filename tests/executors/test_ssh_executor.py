"""What the ssh executor promises beyond the suite: attempts outlive connections and coordinators, and none is begun twice."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import psutil
import pytest
from executor_harness import Harness, eventually, executor_context, pid_in, runs
from ssh_pools import Pools
from support.sshd_server import SshdServer, sshd_server
from support.task_specs import python, shell, spec
from support.waiting import DEADLINE

from daggyr.v1.task_pb2 import HOST_AVAILABLE, HOST_PAUSED, STDERR, AttemptKey, Placement
from daggyr_server.executors.ssh import telling, watching

GATED = 'echo begun; echo $$ > "$1/pid.$DAGGYR_TASK_ID"; until [ -e "$1/gate" ]; do sleep 0.02; done; echo ended'
FOR_EVER = 'echo $$ > "$1"; while :; do sleep 100; done'


async def back(harness: Harness, times: int = 2, host: str = "target") -> None:
    """Wait until the host has become available this many times."""
    await harness.reports.until(lambda: harness.reports.states.count((host, HOST_AVAILABLE)) >= times)


async def paused(harness: Harness, host: str = "target") -> None:
    await harness.reports.until(lambda: (host, HOST_PAUSED) in harness.reports.states)


async def gone(pid: int) -> None:
    await eventually(lambda: not runs(pid))


def filled(disk: Path) -> None:
    """Leave no room on a disk: its file `filler` takes all of it."""
    with (disk / "filler").open("ab", buffering=0) as filler, pytest.raises(OSError, match="No space"):
        while True:
            filler.write(b"x" * 4096)


class TestConnections:
    async def test_CutInTheMiddleOfATaskNothingIsLost(self, server: SshdServer, pools: Pools, tmp_path: Path) -> None:
        harness = await pools.available()
        keys = await harness.give(*[shell(GATED, str(tmp_path))] * 4)
        for number in range(2):
            await pid_in(tmp_path / f"pid.task-{number}")
        assert server.cut()
        await back(harness)
        assert [harness.reports.of(key).results for key in keys[:2]] == [[]] * 2
        (tmp_path / "gate").touch()
        assert [told.text for told in await harness.ended(keys[:2])] == ["begun\nended\n"] * 2
        # Attempts that had not been sent were handed back, so that other targets can have them.
        assert [told.outcome for told in await harness.ended(keys[2:])] == ["RETURNED"] * 2

    async def test_WhatEndsMeanwhileIsFetchedLater(self, server: SshdServer, pools: Pools, tmp_path: Path) -> None:
        harness = await pools.available()
        key = await harness.give_one(shell(f"{GATED}; exit 3", str(tmp_path)))
        pid = await pid_in(tmp_path / "pid.task-0")
        server.stop()
        await paused(harness)
        (tmp_path / "gate").touch()
        await gone(pid)
        server.start()
        told = await harness.ends(key)
        assert (told.outcome, told.result.exit_code, told.text) == ("FAILED", 3, "begun\nended\n")

    async def test_TimeoutsHoldWhileItIsDown(self, server: SshdServer, pools: Pools, tmp_path: Path) -> None:
        harness = await pools.available()
        timeout = 1.0
        while True:
            key, timeout, pid = await harness.timed(FOR_EVER, tmp_path, timeout)
            server.stop()
            if runs(pid):
                break
            server.start()  # the timeout struck too early and gets longer
            await harness.ends(key)
            timeout *= 2
        await gone(pid)
        server.start()
        told = await harness.ends(key)
        assert (told.outcome, told.notes) == ("TIMED_OUT", f"its timeout of {timeout:g} s had passed")

    async def test_WhatIsStoppedWhileItIsDownIsEndedLater(self, server: SshdServer, pools: Pools, tmp_path: Path) -> None:
        harness = await pools.available()
        key = await harness.give_one(shell(FOR_EVER, str(tmp_path / "pid")))
        pid = await pid_in(tmp_path / "pid")
        server.stop()
        await paused(harness)
        harness.stop(key)
        assert runs(pid)
        server.start()
        assert (await harness.ends(key)).outcome == "KILLED"
        assert not runs(pid)

    async def test_AnotherTargetTakesTheWorkAndItComesBackByItself(
        self, server: SshdServer, pools: Pools, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        with sshd_server() as other:
            pools.server.known_hosts.write_text(server.known_hosts.read_text() + other.known_hosts.read_text())
            harness = await pools.open(server.target("one"), other.target("two"))
            await harness.reports.until(lambda: len(harness.available()) == 2)
            keys = harness.start("one", harness.batch(*[shell(GATED, str(tmp_path))] * 3))
            for number in range(2):
                await pid_in(tmp_path / f"pid.task-{number}")
            server.stop()
            await paused(harness, "one")
            assert harness.available() == ["two"]
            assert (await harness.ends(keys[2])).outcome == "RETURNED"
            (told,) = await harness.ended(harness.start("two", harness.batch(spec("/bin/echo", "taken"))))
            assert told.text == "taken\n"
            await eventually(lambda: "target one of pool pool is left out for now" in caplog.text)
            (tmp_path / "gate").touch()
            server.start()
            assert {told.outcome for told in await harness.ended(keys[:2])} == {"SUCCEEDED"}
            await back(harness, host="one")

    async def test_ATargetThatIsDownFromTheBeginningComesLater(self, server: SshdServer, pools: Pools) -> None:
        server.stop()
        harness = await pools.open()
        server.start()
        assert (await harness.run_one(spec("/bin/echo", "there"))).text == "there\n"

    async def test_OutOfReachForLongItIsLostIfThePoolSaysSo(self, server: SshdServer, pools: Pools, tmp_path: Path) -> None:
        harness = await pools.available(lost_after=1)
        key = await harness.give_one(shell(FOR_EVER, str(tmp_path / "pid")))
        pid = await pid_in(tmp_path / "pid")
        server.stop()
        told = await harness.ends(key)
        assert (told.outcome, told.notes) == ("LOST", "its target was out of reach for 1 s")
        assert runs(pid)
        server.start()
        await gone(pid)  # the harness fails if it is told of again
        await eventually(lambda: pools.folders() == [])

    async def test_ManyTasksShareOneConnection(self, server: SshdServer, pools: Pools, tmp_path: Path) -> None:
        """OpenSSH allows ten sessions a connection, and ten connections that have not logged in."""
        harness = await pools.available(server.target(resources={"cores": 32}))
        keys = await harness.give(*[shell(GATED, str(tmp_path))] * 32)
        for number in range(32):
            await pid_in(tmp_path / f"pid.task-{number}")
        await eventually(lambda: server.connections() == 1)  # a connection that only tried whether sshd listens may be ending
        (tmp_path / "gate").touch()
        assert {told.outcome for told in await harness.ended(keys)} == {"SUCCEEDED"}


class TestRecovery:
    async def replaced(self, pools: Pools, harness: Harness, keys: list[AttemptKey]) -> Harness:
        """Return a new coordinator that took up what a coordinator before had placed, which is gone."""
        again = await pools.open(context=executor_context(epoch=2))
        for key in keys:
            again.reports.of(key).host = "target"
        again.executor.recover([(key, Placement(host="target")) for key in keys])
        return again

    async def test_ItTakesUpWhatRunsAndWhatHasEnded(self, pools: Pools, tmp_path: Path) -> None:
        first = await pools.available()
        first.reports.holding = True  # it dies before anything is durable
        short, gated = await first.give(shell("echo short; exit 4"), shell(f"exec >&2; {GATED}", str(tmp_path)))
        await first.ends(short)
        await pid_in(tmp_path / "pid.task-1")
        timed, _, timed_pid = await first.timed(FOR_EVER, tmp_path, 1, resources={"cores": 0})
        await first.executor.close()
        never = AttemptKey(run_id=2**40, task_number=3, attempt=2)
        await gone(timed_pid)
        second = await self.replaced(pools, first, [short, gated, timed, never])
        told = await second.ended([short, timed, never])
        assert [one.outcome for one in told] == ["FAILED", "TIMED_OUT", "LOST"]
        assert (told[0].result.exit_code, told[0].text) == (4, "short\n")
        assert told[0].result.start_time.seconds
        assert "never started" in told[2].notes
        assert second.reports.of(gated).results == []
        (tmp_path / "gate").touch()
        ended = await second.ends(gated)
        assert (ended.outcome, ended.output(STDERR)) == ("SUCCEEDED", b"begun\nended\n")
        await eventually(lambda: pools.folders() == [])

    async def test_WhatItTookUpCountsAndCanBeStopped(self, pools: Pools, tmp_path: Path) -> None:
        first = await pools.available()
        key = await first.give_one(shell(FOR_EVER, str(tmp_path / "pid"), resources={"cores": 2}))
        await pid_in(tmp_path / "pid")
        await first.executor.close()
        second = await self.replaced(pools, first, [key])
        await second.host()
        waiting = await second.give_one(spec("/bin/echo", "after it"))
        assert [chunk async for chunk in self._first(second, key)] == []
        assert second.reports.of(waiting).results == []
        second.stop(key)
        assert (await second.ends(key)).outcome == "KILLED"
        assert (await second.ends(waiting)).text == "after it\n"

    async def _first(self, harness: Harness, key: AttemptKey) -> AsyncIterator[bytes]:
        """Yield nothing, because the attempt has written nothing. Returns once the target was asked."""
        await harness.reports.until(lambda: harness.available())
        for _ in ():
            yield b""

    async def test_TheEarlierOneStartsNothingAnyMore(
        self, pools: Pools, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Of two coordinators at a time, which the tracker forbids, the later one has the target."""
        first = await pools.available()
        key = first.batch(spec("/bin/true")).assignments[0].key
        second = await self.replaced(pools, first, [key])
        assert (await second.ends(key)).outcome == "LOST"
        late = await first.give_one(shell('touch "$1"', str(tmp_path / "late")))
        await eventually(lambda: "which this copy has not reached" in caplog.text)
        assert (await first.ends(late)).outcome == "RETURNED"
        assert not (tmp_path / "late").exists()
        assert (await second.run_one(spec("/bin/echo", "mine"))).text == "mine\n"

    async def test_ATargetThatHasSeenAStartRefusesACopyWithoutIt(self, pools: Pools, tmp_path: Path) -> None:
        """It says how to go on, and goes on with the tracker itself, and with one that was restored."""
        lives = {1: 10, 2: 20, 3: 30}
        first = await pools.available(context=executor_context(epoch=3, life=30, lives=lives))
        await first.give(shell('until [ -e "$1" ]; do sleep 0.1; done', str(tmp_path / "over")))
        await first.reports.until(lambda: any(told.starts for told in first.reports.told.values()))
        await first.executor.close()
        copy = {1: 10, 2: 21}
        for epoch, how in ((2, "has not reached: it is at start 2"), (4, "was another one")):
            copy[epoch] = 10 * epoch + 1
            refused = await pools.open(context=executor_context(epoch=epoch, life=copy[epoch], lives=dict(copy)))
            await paused(refused)
            reason = refused.reports.hosts["target"].fault.reason
            assert how in reason, reason
            assert "target 'target' has seen start 3" in reason
            assert "daggyr-server restore --tracker" in reason
            await refused.executor.close()
        fourth = executor_context(epoch=4, life=40, lives={**lives, 4: 40})
        await (await pools.available(context=fourth)).executor.close()
        restored = {"tracker_id": "restored", "first_id": "tracker-1", "epoch": 10_003, "life": 7}
        await (await pools.available(context=executor_context(**restored, lives={1: 10, 10_003: 7}))).executor.close()
        refused = await pools.open(context=fourth)
        await paused(refused)
        assert "was restored since as another life of itself" in refused.reports.hosts["target"].fault.reason
        (tmp_path / "over").touch()

    async def test_TargetsThatAreNotConfiguredAnyMoreAreLost(self, pools: Pools) -> None:
        harness = await pools.open()
        key = AttemptKey(run_id=2**40, task_number=1, attempt=1)
        harness.reports.of(key).host = "elsewhere"
        harness.executor.recover([(key, Placement(host="elsewhere"))])
        told = await harness.ends(key)
        assert (told.outcome, told.notes) == ("LOST", "the pool pool has no target elsewhere any more")

    async def test_WhatNobodyWantsIsEndedButNothingOfOthers(self, pools: Pools, tmp_path: Path) -> None:
        """A coordinator ends what runs below its tracker and pool and is not in its state, and leaves others' attempts alone."""
        names = {"mine": {}, "pool": {"pool": "another"}, "tracker": {"context": executor_context(tracker_id="tracker-2")}}
        pids = {}
        for name, changes in names.items():
            harness = await pools.available(**changes)  # type: ignore[arg-type]
            await harness.give(shell(FOR_EVER, str(tmp_path / name)))
            pids[name] = await pid_in(tmp_path / name)
            await harness.executor.close()
        again = await pools.available(context=executor_context(epoch=2))
        again.executor.recover([])
        await gone(pids["mine"])
        await eventually(lambda: len(pools.folders()) == 2)
        assert runs(pids["pool"]) and runs(pids["tracker"])
        for name in ("pool", "tracker"):
            os.kill(pids[name], signal.SIGKILL)
            await gone(pids[name])


class TestTargets:
    """Faults of a target."""

    async def test_FoldersGoOnceTheResultIsDurable(self, pools: Pools) -> None:
        harness = await pools.available()
        harness.reports.holding = True
        keys = await harness.give(*[shell("echo x")] * 5)
        await harness.ended(keys)
        assert len(pools.folders()) == 5
        assert (pools.folder(keys[0]) / "stdout").stat().st_mode & 0o777 == 0o600
        assert pools.folder(keys[0]).stat().st_mode & 0o777 == 0o700
        harness.reports.release()
        await eventually(lambda: pools.folders() == [])

    async def test_ItsWardenIsKilled(self, pools: Pools, tmp_path: Path) -> None:
        harness = await pools.available()
        key = await harness.give_one(shell(FOR_EVER, str(tmp_path / "pid")))
        pid = await pid_in(tmp_path / "pid")
        os.kill(psutil.Process(pid).ppid(), signal.SIGKILL)
        pools.server.cut()  # earlier than the executor would look for it
        told = await harness.ends(key)
        assert told.outcome == "LOST"
        assert "nothing is known of its end" in told.notes
        assert not runs(pid)

    async def test_ItsWardenIsKilledWhileTheConnectionStands(
        self, pools: Pools, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # The shell that started the warden is its parent. It starts nothing else, and so does not ask for its children's ends.
        monkeypatch.setattr(watching, "LATE_LOOK_SECONDS", 0.1)
        harness = await pools.available()
        key = await harness.give_one(shell(FOR_EVER, str(tmp_path / "pid")))
        pid = await pid_in(tmp_path / "pid")
        os.kill(psutil.Process(pid).ppid(), signal.SIGKILL)
        told = await harness.ends(key)
        assert told.outcome == "LOST"
        assert "what waits for its end was killed" in told.notes
        assert not runs(pid)

    async def test_AStopReachesAWardenThatDoesNotGoOn(self, pools: Pools, tmp_path: Path) -> None:
        harness = await pools.available()
        key = await harness.give_one(shell(FOR_EVER, str(tmp_path / "pid")))
        pid = await pid_in(tmp_path / "pid")
        os.kill(psutil.Process(pid).ppid(), signal.SIGSTOP)
        harness.stop(key)
        assert (await harness.ends(key)).outcome == "KILLED"
        assert not runs(pid)

    async def test_ItsFolderIsRemovedWhileItRuns(self, pools: Pools, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(watching, "LATE_LOOK_SECONDS", 2 * DEADLINE)  # an attempt that runs for long is given up by this time
        harness = await pools.available()
        key = await harness.give_one(shell(GATED, str(tmp_path)))
        await pid_in(tmp_path / "pid.task-0")
        shutil.rmtree(pools.folder(key))
        (tmp_path / "gate").touch()
        told = await harness.ends(key)
        assert told.outcome == "SUCCEEDED", told
        assert "its folder on the target was removed" in told.notes
        assert told.output() == b""

    async def test_AllFoldersAreRemovedWhileItIdles(self, pools: Pools) -> None:
        harness = await pools.available()
        assert (await harness.run_one(spec("/bin/echo", "one"))).text == "one\n"

        def removed() -> bool:  # not at once, because files may be put there meanwhile
            shutil.rmtree(pools.directory, ignore_errors=True)
            return not pools.directory.exists()

        await eventually(removed)
        assert (await harness.run_one(spec("/bin/echo", "two"))).text == "two\n"

    async def test_AFullDiskLeavesTheTargetOut(
        self, pools: Pools, tmp_path: Path, small_disk: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        harness = await pools.available(directory=str(small_disk))
        filled(small_disk)
        told = await harness.run_one(shell('touch "$1"', str(tmp_path / "ran")))
        assert told.outcome == "RETURNED"
        assert "could not keep the files" in told.notes
        assert not (tmp_path / "ran").exists()
        await paused(harness)
        await harness.reports.until(lambda: "No space left on device" in harness.reports.hosts["target"].fault.reason)
        (small_disk / "filler").unlink()
        await back(harness)
        assert (await harness.run_one(spec("/bin/echo", "again"))).text == "again\n"

    async def test_AFullDiskIsToldAtTheConnectionToo(self, server: SshdServer, pools: Pools, small_disk: Path) -> None:
        """Its results are fetched, and nothing is started there."""
        harness = await pools.available(directory=str(small_disk))
        key = await harness.give_one(shell(GATED, str(small_disk.parent)))
        await pid_in(small_disk.parent / "pid.task-0")
        filled(small_disk)
        assert server.cut()
        await paused(harness)
        (small_disk.parent / "gate").touch()
        told = await harness.ends(key)
        assert (told.outcome, told.result.stdout.incomplete) == ("SUCCEEDED", True)
        assert harness.reports.states[-1] == ("target", HOST_PAUSED)
        await harness.reports.until(lambda: "No space left on device" in harness.reports.hosts["target"].fault.reason)
        (small_disk / "filler").unlink()
        await back(harness)
        assert (await harness.run_one(spec("/bin/echo", "again"))).text == "again\n"

    async def test_OutputThatFillsTheDiskIsMarked(self, pools: Pools, small_disk: Path) -> None:
        """A success stays one, and a failure may be the disk's fault. What must be whole is not taken for whole."""
        flood = "import os\ntry:\n  while True: os.write(1, b'x' * 4096)\nexcept OSError: raise SystemExit({})"
        harness = await pools.available(directory=str(small_disk))
        for code, outcome, whole in ((0, "SUCCEEDED", 0), (3, "RETURNED", 0), (0, "RETURNED", 2**26)):
            task = python(flood.format(code))
            task.whole_stdout_bytes = whole
            told = await harness.run_one(task)
            assert told.outcome == outcome
            assert told.result.stdout.incomplete
            assert "could keep no files when it ended" in told.notes
            assert len(told.output()) > 4096
            await eventually(lambda: not list(small_disk.glob("ssh/*/*/*/lock")))
            await harness.reports.until(lambda: harness.reports.states[-1][1] == HOST_AVAILABLE)
        assert (await harness.run_one(spec("/bin/echo", "again"))).text == "again\n"

    async def test_NothingStaysOnATargetThatHasNothing(self, pools: Pools) -> None:
        left = pools.directory / "ssh/0123456789abcdef/0123456789abcdef"
        left.mkdir(parents=True)
        (left / "fence").touch()
        busy = pools.directory / "ssh/0123456789abcdef/another"
        (busy / "1-0-1").mkdir(parents=True)
        harness = await pools.available()
        assert (await harness.run_one(spec("/bin/true"))).outcome == "SUCCEEDED"
        assert not left.exists()
        assert busy.exists()
        await harness.executor.close()
        assert [path.name for path in pools.directory.glob("ssh/*/*")] == ["another"]

    async def test_AFolderThatCannotBeIsSaid(self, pools: Pools, caplog: pytest.LogCaptureFixture) -> None:
        await pools.open(directory="/proc/nowhere")
        await eventually(lambda: "/proc/nowhere" in caplog.text)
        await pools.open(working_directory="/no/such/folder", pool="other")
        await eventually(lambda: "it has no folder /no/such/folder, which the setting working_directory names" in caplog.text)

    async def test_TasksStartWhereThePoolSays(self, pools: Pools, tmp_path: Path) -> None:
        (tmp_path / "with space").mkdir()
        harness = await pools.available(working_directory=str(tmp_path / "with space"))
        assert (await harness.run_one(spec("/bin/pwd"))).text == f"{tmp_path}/with space\n"

    async def test_ResourcesAreAskedForUnlessTheyAreGiven(self, server: SshdServer, pools: Pools) -> None:
        harness = await pools.available(server.target(resources={"gpus": 3}))
        resources = dict(harness.reports.hosts["target"].resources)
        assert resources["cores"] == len(os.sched_getaffinity(0))
        assert abs(resources["memory_mb"] - psutil.virtual_memory().total // 2**20) <= 1
        assert resources["gpus"] == 3
        largest = harness.executor.largest()
        assert largest is not None
        assert largest["gpus"] == 3
        assert largest["cores"] > 10**9, "not known before it is asked"
        assert "unicorns" not in largest


class TestResults:
    async def test_CpuSecondsAreTold(self, pools: Pools) -> None:
        harness = await pools.available()
        before = time.monotonic()
        told = await harness.run_one(python("import time\nwhile time.process_time() < 0.3: pass"))
        assert 0.25 <= told.result.cpu_seconds <= time.monotonic() - before, "one thread cannot have used more"
        assert not told.result.HasField("max_rss_bytes")

    @pytest.mark.parametrize("code", [126, 127, 129, 137, 139, 200, 255])
    async def test_ExitCodesThatLookLikeSignals(self, pools: Pools, code: int) -> None:
        told = await (await pools.available()).run_one(shell(f"exit {code}"))
        assert (told.outcome, told.result.exit_code, told.result.HasField("signal")) == ("FAILED", code, False)

    @pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT, signal.SIGKILL, signal.SIGSEGV, signal.SIGPIPE])
    async def test_Signals(self, pools: Pools, number: int) -> None:
        told = await (await pools.available()).run_one(shell('kill -s "$1" $$', signal.Signals(number).name[3:]))
        assert (told.result.signal, told.result.HasField("exit_code")) == (number, False)

    async def test_NoSignalIsIgnoredOrBlocked(self, pools: Pools) -> None:
        told = await (await pools.available()).run_one(shell("grep -E '^Sig(Blk|Ign)' /proc/self/status"))
        assert {line.split()[1] for line in told.text.splitlines()} == {"0" * 16}

    async def test_ProgramsThatCannotBeExecutedAreRejected(
        self, pools: Pools, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(telling, "STARTED_SECONDS", 2 * DEADLINE)  # it ends earlier, however slow it is
        program = tmp_path / "program"
        program.write_text("#!/no/such/interpreter\n")
        program.chmod(0o755)
        told = await (await pools.available()).run_one(spec(str(program)))
        assert told.outcome == "REJECTED"
        assert str(program) in told.notes
        assert told.starts == 0


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of the test's own, of 4 MiB."""
    path = tmp_path / "small"
    path.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=4m,mode=0777", "tmpfs", str(path)]
    if os.getuid() != 0 or subprocess.run(command, capture_output=True).returncode != 0:
        pytest.skip("a small disk takes the right to mount one")
    yield path
    subprocess.run(["umount", "--lazy", str(path)], check=True)
