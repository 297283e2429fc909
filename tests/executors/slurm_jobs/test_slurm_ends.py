"""How attempts end whose Slurm job does not end by itself: cancelled, out of memory, preempted, out of time, rejected.

The cluster is real. The jobs of a test are ended with it.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from executor_harness import Harness, eventually
from executor_kinds import CORES, slurm
from slurm_place import FOR_EVER, Place, outcomes
from support import slurm_cluster
from support.task_specs import python, shell, spec

from daggyr.v1.task_pb2 import AttemptKey


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def limited(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[tuple[Harness, AttemptKey]]:
    """An executor and its attempt, whose job's time limit passes in a second.

    The limit is moved instead of waited for. Slurm looks at time limits only twice a minute, so the job runs aside, and the tests
    of this file pass meanwhile.
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
        if not harness.reports.of(key).results:  # the test of it was not among those that ran
            harness.stop(key)
            await harness.ends(key)


@pytest.mark.xdist_group(slurm_cluster.GROUP)
@pytest.mark.usefixtures("limited")
class TestEnds:
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
        # This test is the last one, because the job that runs aside is on the same node.
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
