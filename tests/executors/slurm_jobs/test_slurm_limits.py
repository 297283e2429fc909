"""What a Slurm pool does where Slurm takes nothing, or not so much: limits, a partition that is drained, what a person holds.

The cluster is real, and has accounting with limits for the tests that need them (support/slurm_accounting.py). The jobs of a test
are ended with it.
"""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from executor_harness import Harness, eventually, executor_context
from executor_kinds import CORES
from slurm_place import FOR_EVER, Counting, Place, new_place, outcomes
from support.slurm_accounting import MAX_SUBMIT
from support.slurm_cluster import SlurmCluster
from support.task_specs import shell, spec

from daggyr.v1.task_pb2 import HOST_AVAILABLE, HOST_PAUSED, AttemptKey, Placement
from daggyr_server.executors.base import ExecutorError
from daggyr_server.executors.loader import find_executor
from daggyr_server.executors.slurm.jobs.held_back import MAX_HELD_BACK

LOOK = 0.1  # seconds between two looks of these pools, their `poll_interval`


@pytest.fixture
async def limited(cluster: SlurmCluster, tmp_path: Path) -> AsyncIterator[Place]:
    """A place on the cluster with accounting."""
    cluster.account()
    async with new_place(cluster, tmp_path, {}) as made:
        yield made


def where(harness: Harness, key: AttemptKey) -> Placement:
    return harness.executor.placement(harness.executor.pool, key)


class TestLimits:
    async def test_MoreTasksThanAUserMaySubmitAllRun(self, limited: Place) -> None:
        counting = Counting()
        resources = {"cores": 1_000, "memory_mb": 1_000_000}
        harness = await limited.coordinator(counting, qos="few", resources=resources)
        told = await harness.run(*[spec("/bin/true")] * 50)
        assert outcomes(told) == ["SUCCEEDED"] * 50
        assert counting.sizes[:3] == [50, 25, 12], "half of it, until it is taken"
        assert max(counting.sizes[2:]) <= 2 * MAX_SUBMIT

    async def test_NeedsThatAreRefusedBlockNoOthers(self, limited: Place) -> None:
        harness = await limited.coordinator(qos="narrow")
        wide = await harness.give(*[spec("/bin/true", resources={"cores": 2})] * 2)
        await eventually(lambda: where(harness, wide[0]).reason)
        assert outcomes(await harness.run(*[spec("/bin/true")] * 3)) == ["SUCCEEDED"] * 3
        assert "QOSMaxCpuPerJobLimit" in where(harness, wide[1]).reason
        offered = harness.reports.hosts[harness.executor.pool]
        assert offered.resources["cores"] == CORES + 4, "what is held back keeps nobody out"
        assert "QOSMaxCpuPerJobLimit" in offered.shortage
        (limit,) = offered.limits
        assert (dict(limit.resources), limit.room) == ({"cores": 2}, 0), "those that wait are enough to try"
        assert "QOSMaxCpuPerJobLimit" in limit.reason
        harness.recall(*wide)
        assert outcomes(await harness.ended(wide)) == ["RETURNED"] * 2
        await harness.reports.until(lambda: harness.reports.hosts[harness.executor.pool].limits[0].room > 0)

    async def test_WhatIsHeldBackBeyondItsPartGoesBackOnceTheCoreIsTold(self, limited: Place) -> None:
        harness = await limited.coordinator(qos="narrow", max_jobs=10_000)
        keys = await harness.give(*[spec("/bin/true", resources={"cores": 2})] * (MAX_HELD_BACK + 10))
        back = await harness.ended(keys[-10:])
        assert outcomes(back) == ["RETURNED"] * 10, "what came last"
        assert all("QOSMaxCpuPerJobLimit" in told.notes for told in back)
        assert [limit.room for limit in harness.reports.hosts[harness.executor.pool].limits] == [0]
        assert not any(harness.reports.of(key).results for key in keys[:-10])
        harness.recall(*keys)

    async def test_SlurmIsNotAskedAllTheTimeHoweverManyKindsItRefuses(self, limited: Place) -> None:
        counting = Counting()
        harness = await limited.coordinator(counting, qos="narrow")
        kinds = 8
        specs = [spec("/bin/true", resources={"cores": 2, "memory_mb": 10 + number}) for number in range(kinds)]
        keys = await harness.give(*specs)
        await eventually(lambda: len(counting.sizes) >= 4 * kinds)
        again = counting.times[kinds:]
        assert all(after - before > LOOK for before, after in itertools.pairwise(again)), "one kind after another"
        assert outcomes(await harness.run(spec("/bin/true"))) == ["SUCCEEDED"]
        harness.recall(*keys)
        assert outcomes(await harness.ended(keys)) == ["RETURNED"] * kinds


class TestTrouble:
    async def test_APartitionThatIsDrainedPausesThePoolUntilItIsBack(self, place: Place) -> None:
        harness = await place.coordinator()
        place.cluster.ask("scontrol", "update", "partition=main", "state=drain")
        try:
            told = await harness.run_one(spec("/bin/true"))
            assert (told.outcome, "Required partition not available" in told.notes) == ("RETURNED", True)
            paused = next(host for host in harness.reports.all_hosts if host.state == HOST_PAUSED)
            assert "Required partition not available" in paused.fault.reason and paused.fault.keeps
        finally:
            place.cluster.ask("scontrol", "update", "partition=main", "state=up")
        await harness.reports.until(lambda: harness.reports.states[-1][1] == HOST_AVAILABLE)
        assert (await harness.run_one(spec("/bin/true"))).outcome == "SUCCEEDED"

    async def test_WhatAPersonHoldsStaysHeldAndPeopleAreToldWhereAJobIs(self, home: Place) -> None:
        harness = await home.coordinator()
        home.cluster.ask("scontrol", "update", "partition=main", "state=down")
        try:
            key = await harness.give_one(spec("/bin/true"))
            await eventually(lambda: where(harness, key).reason == "PartitionDown")
            found = where(harness, key)
            assert (found.state, found.node) == ("PENDING", "")
            ((job, name, _),) = home.cluster.unfinished("daggyr-")
            assert (job, name.partition(".")[2]) == (found.job, f"run{key.run_id}.task-0")
            home.cluster.ask("scontrol", "uhold", job)
        finally:
            home.cluster.ask("scontrol", "update", "partition=main", "state=up")
        await eventually(lambda: where(harness, key).reason.startswith("JobHeld"))
        again = await home.coordinator()  # Another coordinator does not release it either.
        again.reports.of(key).host = await again.host()
        again.executor.recover([(key, Placement(host=again.executor.pool))])
        await eventually(lambda: where(again, key).reason.startswith("JobHeld"))
        assert (await again.run_one(spec("/bin/true"))).outcome == "SUCCEEDED"
        assert [state for number, _, state in home.cluster.unfinished("daggyr-") if number == job] == ["PENDING"]
        home.cluster.ask("scontrol", "release", job)
        told = await again.ends(key)
        assert told.outcome == "SUCCEEDED"
        # A job that was over before anybody looked has no node.
        assert told.result.placement.job == job and told.result.placement.node in ("", home.cluster.node)


class TestEndedBySlurm:
    async def test_WhatIsCancelledIsNoSuccessWhateverItsExitCode(self, home: Place) -> None:
        harness = await home.coordinator()
        keys = await harness.give(*[shell("echo here; sleep 600 >/dev/null; echo done")] * CORES)
        for key in keys:
            await harness.started(key)
        for job, _, _ in home.cluster.unfinished("daggyr-"):
            home.cluster.ask("scancel", job)
        assert outcomes(await harness.ended(keys)) == ["KILLED"] * CORES


class TestGpus:
    async def test_GpusAreAskedOfSlurm(self, place: Place) -> None:
        harness = await place.coordinator(resources={"cores": CORES, "gpus": CORES})
        key = await harness.give_one(shell(FOR_EVER, resources={"cores": 1, "gpus": 1}))
        await harness.started(key)
        ((job, _, _),) = place.cluster.unfinished("daggyr-")
        assert "gpu:1" in place.cluster.ask("scontrol", "show", "job", "-d", job)
        harness.stop(key)
        await harness.ends(key)


async def test_AFolderThatIsEmptyDoesNotStay(home: Place) -> None:
    harness = await home.coordinator()
    assert (await harness.run_one(spec("/bin/true"))).outcome == "SUCCEEDED"
    await eventually(lambda: not home.folders)
    await home.end()
    assert not [path for path in home.home.iterdir() if path.name.startswith("tracker-")]


async def test_ADirectoryThatOthersMayWriteIsRefused(home: Place) -> None:
    home.home.chmod(0o777)
    kind = find_executor("slurm")
    executor = kind("pool", kind.Settings(directory=home.home), None, executor_context())  # type: ignore[arg-type]
    with pytest.raises(ExecutorError, match="can be written by others"):
        await executor.open()
