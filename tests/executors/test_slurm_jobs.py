"""What is Slurm's own in job mode, on a real cluster: how jobs end, what becomes of them when the coordinator or the controller
goes away, and that none is submitted twice, wherever a coordinator is killed."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import shutil
import stat
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import psutil
import pytest
import pytest_asyncio
from executor_harness import Harness, Told, eventually, executor_context, pid_in, python, shell, spec
from executor_kinds import CORES, slurm
from support import slurm_cluster
from support.slurm_cluster import SlurmCluster
from support.waiting import DEADLINE, until

from daggyr.v1.task_pb2 import HOST_AVAILABLE, HOST_PAUSED, AttemptKey, Placement, TaskSpec
from daggyr_server.executors.slurm.client import Job, SlurmClient, SlurmUnavailable
from daggyr_server.executors.slurm.jobs.executor import JobExecutor

_trackers = (f"place-{number}" for number in itertools.count(1))  # of which no other executor has one; see `slurm`
FOR_EVER = "while :; do sleep 100; done"
COUNTED = 'echo "$DAGGYR_TASK_ID" >> "$1/log"'
GATED = 'echo "$DAGGYR_TASK_ID" >> "$1/log"; until [ -e "$1/gate" ]; do sleep 0.02; done; echo done; exit "$2"'


@pytest.fixture
def cluster() -> Iterator[SlurmCluster]:
    """The session's; a test leaves no job behind, but for those that are just ending."""
    found = slurm_cluster.running()
    until(lambda: not found.unfinished("daggyr-"), "the end of the jobs of tests before")
    yield found
    found.mend()
    until(lambda: not found.unfinished("daggyr-"), "the end of the jobs of this test")


class Place:
    """A pool's directory, and the coordinators that come and go there."""

    def __init__(self, home: Path, cluster: SlurmCluster, settings: dict[str, Any]) -> None:
        self.home = home
        self.cluster = cluster
        self._settings = settings
        self._context = executor_context(tracker_id=next(_trackers))
        self._stack = AsyncExitStack()

    async def coordinator(self, *dies: Dying, **settings: Any) -> Harness:
        """Another coordinator takes the place of the one before, which is gone at once."""
        await self.end()
        harness = await self._stack.enter_async_context(slurm(self.home, context=self._context, **{**self._settings, **settings}))
        executor = harness.executor
        assert isinstance(executor, JobExecutor)
        for each in dies:
            each.client, executor.client = executor.client, each
        return harness

    async def end(self) -> None:
        await self._stack.aclose()
        self._stack = AsyncExitStack()

    def log(self) -> list[str]:
        """Which tasks ran, in order."""
        path = self.home / "log"
        return path.read_text().split() if path.exists() else []

    def gated(self, code: int = 0) -> TaskSpec:
        return shell(GATED, str(self.home), str(code))

    def open_gate(self) -> None:
        (self.home / "gate").touch()

    def silence(self) -> None:
        """Take the one job that runs its way to tell of its end, so that only what Slurm says counts."""
        (folder,) = self.folders
        (folder / "0.part").mkdir()

    @property
    def folders(self) -> list[Path]:
        """The submissions that are on disk."""
        return list((self.home / self._context.tracker_id).iterdir())


class Dying:
    """A client that hears a call and never answers, as if the coordinator were killed there: before Slurm has it, or after."""

    def __init__(self, call: str, *, after: bool) -> None:
        self.client: SlurmClient
        self.job: Job | None = None
        self._reached = asyncio.Event()
        self._call, self._after = call, after

    def __getattr__(self, name: str) -> Any:
        return getattr(self.client, name)

    async def _die(self, call: str, *arguments: Any) -> Any:
        if call != self._call:
            return await getattr(self.client, call)(*arguments)
        if self._after:
            await getattr(self.client, call)(*arguments)
        self._reached.set()
        return await asyncio.Event().wait()

    async def reached(self) -> None:
        """Return once the coordinator is there."""
        async with asyncio.timeout(DEADLINE):
            await self._reached.wait()

    async def submit(self, job: Job) -> str:
        self.job = job
        return str(await self._die("submit", job))

    async def release(self, job_id: str) -> None:
        await self._die("release", job_id)


class Counting:
    """A client that notes what it is asked."""

    def __init__(self) -> None:
        self.client: SlurmClient
        self.sizes: list[int] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.client, name)

    async def submit(self, job: Job) -> str:
        self.sizes.append(job.size)
        return await self.client.submit(job)


@pytest.fixture(params=["commands", "slurmrestd"])
def settings(request: pytest.FixtureRequest, cluster: SlurmCluster, tmp_path: Path) -> dict[str, Any]:
    """Of a pool by either of the two ways to Slurm."""
    if request.param == "commands":
        return {}
    token = tmp_path / "token"
    token.touch(mode=0o600)
    token.write_text(cluster.token())
    return {"base_url": cluster.rest_url, "user": "root", "token_file": token}


@pytest.fixture
async def place(cluster: SlurmCluster, tmp_path: Path, settings: dict[str, Any]) -> AsyncIterator[Place]:
    """By both ways."""
    async with _place(cluster, tmp_path, settings) as made:
        yield made


@pytest.fixture
async def home(cluster: SlurmCluster, tmp_path: Path) -> AsyncIterator[Place]:
    """By the commands, where the way does not matter."""
    async with _place(cluster, tmp_path, {}) as made:
        yield made


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def limited(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[tuple[Harness, AttemptKey]]:
    """An executor and its attempt, whose job's time limit passes in a second.

    Slurm looks at time limits twice a minute only. So the limit is moved rather than waited for, and the job runs aside, while
    other tests pass.
    """
    folder = tmp_path_factory.mktemp("limited")
    async with slurm(folder, time_limit="50", partition="aside") as harness:
        key = await harness.give_one(shell(FOR_EVER, resources={"cores": 1, "memory_mb": 50}))
        await harness.started(key)
        cluster = slurm_cluster.running()
        (job,) = cluster.ask("squeue", "--noheader", "--partition=aside", "--states=running", "--format=%i").split()
        assert "TimeLimit=00:50:00" in cluster.ask("scontrol", "show", "job", job)
        cluster.ask("scontrol", "update", f"jobid={job}", "endtime=now+1")
        yield harness, key


@contextlib.asynccontextmanager
async def _place(cluster: SlurmCluster, folder: Path, settings: dict[str, Any]) -> AsyncIterator[Place]:
    (folder / "home").mkdir()
    made = Place(folder / "home", cluster, settings)
    yield made
    await made.end()
    cluster.mend()
    for job, _, _ in cluster.unfinished("daggyr-"):
        cluster.ask("scancel", job)
    await eventually(lambda: not cluster.unfinished("daggyr-"))


async def took_up(harness: Harness, keys: Sequence[AttemptKey]) -> None:
    """Tell a new coordinator's executor what the one before had placed."""
    host = await harness.host()
    for key in keys:
        harness.reports.of(key).host = host
    harness.executor.recover([(key, Placement(host=host)) for key in keys])


def outcomes(told: Sequence[Told]) -> list[str]:
    return [each.outcome for each in told]


@pytest.mark.usefixtures("limited")  # here, so that it waits beside these tests
class TestTogether:
    """How attempts become jobs."""

    async def test_EqualNeedsShareAnArray(self, place: Place) -> None:
        counting = Counting()
        harness = await place.coordinator(counting)  # type: ignore[arg-type]
        wide = spec("/bin/true", resources={"cores": CORES})
        told = await harness.run(*[spec("/bin/true")] * 5, wide, spec("/bin/true"), wide)
        assert set(outcomes(told)) == {"SUCCEEDED"}
        assert counting.sizes == [6, 2]

    async def test_NoMoreThanItMayAreInSlurm(self, home: Place) -> None:
        counting = Counting()
        harness = await home.coordinator(counting, max_jobs=2)  # type: ignore[arg-type]
        told = await harness.run(*[spec("/bin/true")] * 5)
        assert outcomes(told) == ["SUCCEEDED"] * 5
        assert max(counting.sizes) <= 2 and sum(counting.sizes) == 5

    async def test_StopAndRecallByEitherWay(self, place: Place) -> None:
        harness = await place.coordinator()
        cleaning = shell(f"trap 'echo bye; exit 4' TERM; echo $$ > \"$1/pid\"; {FOR_EVER} & wait", str(place.home))
        key = await harness.give_one(cleaning)
        child = await pid_in(place.home / "pid")
        others = await harness.give(*[place.gated()] * CORES)
        assert psutil.pid_exists(child)
        await harness.started(others[0])
        harness.recall(*others)
        (returned,) = await harness.ended(others[1:])
        assert returned.outcome == "RETURNED"
        harness.stop(key)
        told = await harness.ends(key)
        assert (told.outcome, told.result.exit_code, told.output()) == ("KILLED", 4, b"bye\n")
        place.open_gate()
        assert (await harness.ends(others[0])).outcome == "SUCCEEDED"

    async def test_ExecutorsThatTheTestsMakeLeaveEachOthersJobs(self, home: Place, tmp_path: Path) -> None:
        """Two with one tracker and one pool would take each other's jobs for their own that nobody waits for, and cancel them."""
        (tmp_path / "other").mkdir()
        async with slurm(home.home) as one, slurm(tmp_path / "other") as other:
            key = await one.give_one(home.gated())
            await one.started(key)
            assert (await other.run_one(shell("exit 3"))).outcome == "FAILED", "which it knows once it has asked for its jobs"
            home.open_gate()
            assert (await one.ends(key)).outcome == "SUCCEEDED"

    async def test_NothingOfATaskShowsElsewhere(self, home: Place) -> None:
        """Its words and environment are in private files, not in arguments, and not in what Slurm shows of the job."""
        harness = await home.coordinator()
        secret = "open sesame 'n' $HOME"
        key = await harness.give_one(shell(f'touch "$1"; {FOR_EVER}', str(home.home / "runs"), environment={"SECRET": secret}))
        await harness.started(key)
        ((job, _, _),) = home.cluster.unfinished("daggyr-")
        shown = home.cluster.ask("scontrol", "show", "job", "-dd", job)
        shown += home.cluster.ask("scontrol", "write", "batch_script", job, "-")
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                shown += " ".join(process.cmdline())
        assert "slurm_script" in shown and "sesame" not in shown
        (folder,) = home.folders
        modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert modes["tasks"] == modes["manifest"] == modes["0.out"] == 0o600
        harness.stop(key)
        await harness.ends(key)

    async def test_FilesGoOnceTheResultIsDurable(self, home: Place) -> None:
        harness = await home.coordinator()
        harness.reports.holding = True
        told = await harness.run(*[shell("echo out", stdin="in")] * 2)
        assert outcomes(told) == ["SUCCEEDED"] * 2
        (folder,) = home.folders
        assert {"0.out", "1.out"} <= {path.name for path in folder.iterdir()}
        harness.reports.release()
        await eventually(lambda: not home.folders)


class TestEnds:
    """How jobs end that do not end by themselves."""

    async def test_AnOperatorCancelsWhatRuns(self, place: Place) -> None:
        harness = await place.coordinator()
        key = await harness.give_one(shell(FOR_EVER))
        await harness.started(key)
        ((job, _, _),) = place.cluster.unfinished("daggyr-")
        place.cluster.ask("scancel", job)
        told = await harness.ends(key)
        assert told.outcome == "KILLED"
        assert "not from here" in told.notes
        assert told.result.signal == 15, "it was asked to end before it was made to"
        assert told.result.HasField("start_time")

    async def test_AnOperatorCancelsWhatWaits(self, place: Place) -> None:
        harness = await place.coordinator()
        keys = await harness.give(*[place.gated()] * (CORES + 1))
        for key in keys[:CORES]:
            await harness.started(key)
        (job,) = [job for job, _, state in place.cluster.unfinished("daggyr-") if state == "PENDING"]
        place.cluster.ask("scancel", job)
        told = await harness.ends(keys[-1])
        assert (told.outcome, told.result.HasField("start_time")) == ("KILLED", False)
        place.open_gate()
        assert outcomes(await harness.ended(keys[:CORES])) == ["SUCCEEDED"] * CORES
        assert len(place.log()) == CORES

    async def test_MemoryIsUsedUp(self, home: Place) -> None:
        if not home.cluster.has_cgroups:
            pytest.skip("without control groups, Slurm does not see it")
        harness = await home.coordinator()
        told = await harness.run_one(python("kept = b'x' * 300_000_000", resources={"cores": 1, "memory_mb": 100}))
        assert told.outcome == "OOM_KILLED"
        assert told.result.signal == 9

    async def test_APreemptedOneIsLost(self, home: Place) -> None:
        harness = await home.coordinator(settle_seconds=0.05)
        key = await harness.give_one(shell(FOR_EVER, resources={"cores": CORES}))
        await harness.started(key)
        home.silence()
        urgent = home.cluster.ask(
            *("sbatch", "--parsable", "--partition=urgent", f"--cpus-per-task={CORES}", "--output=/dev/null"),
            *("--job-name=urgent", "--wrap=true"),
        )
        told = await harness.ends(key)
        assert (told.outcome, "preempted" in told.notes) == ("LOST", True)
        await eventually(lambda: (urgent.strip(), "urgent", "COMPLETED") in home.cluster.jobs())

    async def test_WhatSlurmWillNeverTakeIsRejectedInItsWords(self, place: Place) -> None:
        harness = await place.coordinator(partition="elsewhere")
        told = await harness.run_one(spec("/bin/true"))
        assert (told.outcome, "partition" in told.notes) == ("REJECTED", True)

    async def test_AResourceIsAskedOfSlurm(self, place: Place) -> None:
        harness = await place.coordinator()
        resources = {"cores": 1, "memory_mb": 123, "gres/widget": 1}
        key = await harness.give_one(shell(FOR_EVER, resources=resources, timeout=3000))
        await harness.started(key)
        ((job, _, _),) = place.cluster.unfinished("daggyr-")
        shown = place.cluster.ask("scontrol", "show", "job", "-d", job)
        assert "MinMemoryNode=123M" in shown and "widget" in shown
        assert "TimeLimit=00:53:00" in shown, "the timeout, its grace, what may be needed after it, and a whole minute"
        harness.stop(key)
        assert (await harness.ends(key)).outcome == "KILLED"

    async def test_ProcessorTimeIsTold(self, home: Place) -> None:
        harness = await home.coordinator()
        before = time.monotonic()
        told = await harness.run_one(python("import time\nwhile time.process_time() < 0.5: pass"))
        assert 0.4 <= told.result.cpu_seconds <= time.monotonic() - before, "one thread cannot have used more"

    @pytest.mark.asyncio(loop_scope="module")
    async def test_TheJobsTimeLimitHasPassed(self, limited: tuple[Harness, AttemptKey]) -> None:
        harness, key = limited
        told = await harness.ends(key)
        assert (told.outcome, "time_limit" in told.notes) == ("TIMED_OUT", True)

    async def test_OneWhoseNodeFailsIsLost(self, home: Place) -> None:
        # This is the last of its class, because what runs aside is on the same node.
        harness = await home.coordinator(settle_seconds=0.05)
        key = await harness.give_one(shell(FOR_EVER))
        await harness.started(key)
        home.silence()
        node = f"nodename={home.cluster.node}"
        home.cluster.ask("scontrol", "update", node, "state=down", "reason=test")
        try:
            told = await harness.ends(key)
        finally:
            home.cluster.ask("scontrol", "update", node, "state=resume")
        assert (told.outcome, "the node" in told.notes) == ("LOST", True)
        assert (await harness.run_one(spec("/bin/true"))).outcome == "SUCCEEDED"


class TestRecovery:
    """Another coordinator of the same tracker takes up what one had placed."""

    async def test_WhatRunsAndWhatWaitsGoesOn(self, place: Place) -> None:
        harness = await place.coordinator()
        keys = await harness.give(*[place.gated()] * (CORES + 1))
        for key in keys[:CORES]:
            await harness.started(key)
        again = await place.coordinator()
        await took_up(again, keys)
        place.open_gate()
        told = await again.ended(keys)
        assert outcomes(told) == ["SUCCEEDED"] * (CORES + 1)
        assert {each.text for each in told} == {"done\n"}
        assert sorted(place.log()) == [f"task-{number}" for number in range(CORES + 1)], "none was repeated"
        await eventually(lambda: not place.folders)

    async def test_WhatSlurmHasForgottenIsToldFromItsResult(self, home: Place) -> None:
        harness = await home.coordinator()
        keys = await harness.give(home.gated(5), home.gated(5))
        for key in keys:
            await harness.started(key)
        await home.end()
        home.open_gate()
        await eventually(lambda: not home.cluster.unfinished("daggyr-"))
        home.cluster.stop_controller()
        home.cluster.start_controller(clean=True)
        assert home.cluster.jobs() == []
        again = await home.coordinator()
        await took_up(again, keys)
        told = await again.ended(keys)
        assert [(each.outcome, each.result.exit_code, each.text) for each in told] == [("FAILED", 5, "done\n")] * 2

    async def test_WhatRanAndLeftNoResultIsLost(self, home: Place) -> None:
        """Its node went away with it, and the controller has begun anew."""
        harness = await home.coordinator()
        key = await harness.give_one(home.gated())
        await harness.started(key)
        await home.end()
        home.open_gate()
        await eventually(lambda: not home.cluster.unfinished("daggyr-"))
        (folder,) = home.folders
        (folder / "0.result").unlink()
        home.cluster.stop_controller()
        home.cluster.start_controller(clean=True)
        again = await home.coordinator(settle_seconds=0.05)
        await took_up(again, [key])
        told = await again.ends(key)
        assert (told.outcome, "left no result" in told.notes) == ("LOST", True)

    async def test_ItsFilesWereRemoved(self, home: Place) -> None:
        """What ran is lost, others go on."""
        harness = await home.coordinator(settle_seconds=0.05)
        key = await harness.give_one(home.gated())
        await harness.started(key)
        (folder,) = home.folders
        shutil.rmtree(folder)
        home.open_gate()
        assert (await harness.ends(key)).outcome == "LOST"
        assert (await harness.run_one(spec("/bin/true"))).outcome == "SUCCEEDED"

    async def test_WhatWasNeverSubmittedIsLost(self, home: Place) -> None:
        harness = await home.coordinator()
        (key,) = [assignment.key for assignment in harness.batch(spec("/bin/true")).assignments]
        await took_up(harness, [key])
        assert (await harness.ends(key)).outcome == "LOST"

    async def test_AStopOfWhatWasTakenUp(self, place: Place) -> None:
        harness = await place.coordinator()
        key = await harness.give_one(shell(FOR_EVER))
        await harness.started(key)
        again = await place.coordinator()
        await took_up(again, [key])
        again.stop(key)
        told = await again.ends(key)
        assert (told.outcome, told.result.signal) == ("KILLED", 15)

    async def test_StopsHoldWhileTheControllerIsAway(self, home: Place) -> None:
        harness = await home.coordinator()
        key = await harness.give_one(shell(FOR_EVER))
        await harness.started(key)
        home.cluster.stop_controller()
        harness.stop(key)
        await harness.reports.until(lambda: (harness.executor.pool, HOST_PAUSED) in harness.reports.states)
        home.cluster.start_controller()
        assert (await harness.ends(key)).outcome == "KILLED"

    async def test_APoolThatHasNothingLeftNoticesThatTheControllerIsBack(self, home: Place) -> None:
        """What waited is taken back without Slurm, which cannot be asked; nothing flies any more, and nothing would ask."""
        harness = await home.coordinator()
        home.cluster.ask("scontrol", "update", "partition=main", "state=down")
        try:
            key = await harness.give_one(spec("/bin/true"))
            await eventually(lambda: [job for job in home.cluster.unfinished("daggyr-") if job[2] == "PENDING"])
            home.cluster.stop_controller()
            harness.stop(key)
            await harness.reports.until(lambda: harness.reports.states[-1][1] == HOST_PAUSED)
            assert (await harness.ends(key)).outcome == "KILLED"
        finally:
            home.cluster.mend()
            home.cluster.ask("scontrol", "update", "partition=main", "state=up")
        await harness.reports.until(lambda: harness.reports.states[-1][1] == HOST_AVAILABLE)
        assert (await harness.run_one(spec("/bin/true"))).outcome == "SUCCEEDED"

    async def test_TheControllerGoesAwayAndComesBack(self, home: Place) -> None:
        harness = await home.coordinator()
        running = await harness.give_one(home.gated())
        await harness.started(running)
        home.cluster.stop_controller()
        waiting = harness.start(harness.executor.pool, harness.batch(shell(COUNTED, str(home.home))))
        await harness.reports.until(lambda: harness.reports.states[-1][1] == HOST_PAUSED)
        home.open_gate()
        assert (await harness.ends(running)).outcome == "SUCCEEDED", "told from its own result"
        home.cluster.start_controller()
        assert outcomes(await harness.ended(waiting)) == ["SUCCEEDED"]
        await harness.reports.until(lambda: harness.reports.states[-1][1] == HOST_AVAILABLE)
        assert home.log() == ["task-0", "task-0"]


async def succession(place: Place, dying: Dying, count: int = 2) -> tuple[Harness, list[AttemptKey]]:
    """A coordinator is given so many attempts and dies; its successor is told of them."""
    harness = await place.coordinator(dying)
    keys = await harness.give(*[shell(COUNTED, str(place.home))] * count)
    await dying.reached()
    again = await place.coordinator()
    await took_up(again, keys)
    return again, keys


class TestSubmittedOnce:
    """A coordinator is killed at each step of a submission. Its successor is told of the attempts by the tracker."""

    async def test_KilledBeforeSbatch(self, place: Place) -> None:
        dying = Dying("submit", after=False)
        again, keys = await succession(place, dying)
        assert outcomes(await again.ended(keys)) == ["LOST"] * 2
        # The sbatch that it had started outlived it, and only now comes to its end.
        assert dying.job is not None
        executor = again.executor
        assert isinstance(executor, JobExecutor)
        await executor.client.submit(dying.job)
        name = dying.job.name
        await eventually(lambda: (jobs := place.cluster.jobs(name)) and all(state == "CANCELLED" for *_, state in jobs))
        assert place.log() == []

    async def test_ALateOneDoesNothingEvenIfSomebodyReleasesIt(self, home: Place) -> None:
        dying = Dying("submit", after=False)
        again, keys = await succession(home, dying, count=1)
        await again.ended(keys)
        executor = again.executor
        assert isinstance(executor, JobExecutor) and dying.job is not None
        client = executor.client
        await home.end()
        job_id = await client.submit(dying.job)
        await client.release(job_id)
        await eventually(lambda: not home.cluster.unfinished(dying.job.name if dying.job else ""))
        assert home.log() == []

    @pytest.mark.parametrize(("step", "after"), [("submit", True), ("release", False), ("release", True)])
    async def test_KilledLater(self, place: Place, step: str, after: bool) -> None:
        again, keys = await succession(place, Dying(step, after=after))
        assert outcomes(await again.ended(keys)) == ["SUCCEEDED"] * 2
        assert sorted(place.log()) == ["task-0", "task-1"]

    async def test_AnAttemptThatTheTrackerDoesNotKnowOfIsEnded(self, home: Place) -> None:
        """It was taken back, or its run was deleted, while no coordinator was there."""
        dying = Dying("release", after=False)
        harness = await home.coordinator(dying)
        keys = await harness.give(*[shell(COUNTED, str(home.home))] * 3)
        await dying.reached()
        again = await home.coordinator()
        await took_up(again, keys[:1])
        assert outcomes(await again.ended(keys[:1])) == ["SUCCEEDED"]
        await eventually(lambda: not home.cluster.unfinished("daggyr-"))
        assert home.log().count("task-0") == 1

    async def test_AnAnswerThatIsLostIsNoSecondStart(self, home: Place) -> None:
        """sbatch took the job and its answer did not come: that submission is void, and the attempt goes out in another."""

        class Deaf(Counting):
            async def submit(self, job: Job) -> str:
                job_id = await super().submit(job)
                if len(self.sizes) == 1:
                    raise SlurmUnavailable("Socket timed out on send/recv operation")
                return job_id

        deaf = Deaf()
        harness = await home.coordinator(deaf)  # type: ignore[arg-type]
        told = await harness.run(shell(COUNTED, str(home.home)))
        assert outcomes(told) == ["SUCCEEDED"]
        assert deaf.sizes == [1, 1]
        await eventually(lambda: not home.cluster.unfinished("daggyr-"))
        assert home.log() == ["task-0"]


async def test_ATokenThatHasExpiredIsWaitedOut(cluster: SlurmCluster, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.touch(mode=0o600)
    token.write_text("not.a.token")
    (tmp_path / "home").mkdir()
    given: dict[str, Any] = {"base_url": cluster.rest_url, "user": "root", "token_file": token}
    executor = slurm(tmp_path / "home", **given)
    opening = asyncio.ensure_future(executor.__aenter__())
    done, _ = await asyncio.wait((opening,), timeout=0.5)
    assert not done, "no host is offered while Slurm answers nobody"
    token.write_text(cluster.token())
    harness = await opening
    try:
        assert (await harness.run_one(spec("/bin/true"))).outcome == "SUCCEEDED"
    finally:
        await executor.__aexit__(None, None, None)
