"""Coordinators and Slurm's controller go away and come back: a new coordinator takes attempts up, and submits none a second time.

The cluster is real. A coordinator is killed at each step of a submission, before and after Slurm has heard of it.
"""

from __future__ import annotations

import shutil

import pytest
from executor_harness import Harness, eventually
from executor_kinds import CORES
from slurm_place import COUNTED, FOR_EVER, Counting, Dying, Place, outcomes, took_up
from support.task_specs import shell, spec

from daggyr.v1.task_pb2 import HOST_AVAILABLE, HOST_PAUSED, AttemptKey
from daggyr_server.executors.slurm.client import Job, SlurmUnavailable
from daggyr_server.executors.slurm.jobs.executor import JobExecutor


class TestRecovery:
    """A coordinator takes up the attempts that another one of the same tracker had placed."""

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
        """The attempt's node went away with its result, and the controller has forgotten the job."""
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
        """The attempt whose files were removed is lost, and other attempts go on."""
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
        """The pool asks Slurm though it has no attempt left: the last one was taken back while Slurm could not be asked."""
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
        (told,) = await harness.ended(waiting)
        if told.outcome == "RETURNED":  # It may run elsewhere, or later. Else the controller was back before it was given back.
            assert "controller" in told.notes
            (told,) = await harness.run(shell(COUNTED, str(home.home)))
        assert told.outcome == "SUCCEEDED"
        await harness.reports.until(lambda: harness.reports.states[-1][1] == HOST_AVAILABLE)
        assert home.log() == ["task-0", "task-0"]


async def succession(place: Place, dying: Dying, count: int = 2) -> tuple[Harness, list[AttemptKey]]:
    """Give `count` attempts to a coordinator that dies; returns its successor, which was told of them, and their keys."""
    harness = await place.coordinator(dying)
    keys = await harness.give(*[shell(COUNTED, str(place.home))] * count)
    await dying.reached()
    again = await place.coordinator()
    await took_up(again, keys)
    return again, keys


class TestSubmittedOnce:
    """A coordinator is killed at each step of a submission. The tracker tells its successor of the attempts."""

    async def test_KilledBeforeSbatch(self, place: Place) -> None:
        dying = Dying("submit", after=False)
        again, keys = await succession(place, dying)
        assert outcomes(await again.ended(keys)) == ["LOST"] * 2
        # The dead coordinator's sbatch outlived it and reaches Slurm only now.
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
        """The attempt was taken back, or its run was deleted, while no coordinator was there."""
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
        """A submission whose answer is lost is void, although Slurm took it. The attempt goes back, and the next one runs."""

        class Deaf(Counting):
            async def submit(self, job: Job) -> str:
                job_id = await super().submit(job)
                if len(self.sizes) == 1:
                    raise SlurmUnavailable("Socket timed out on send/recv operation")
                return job_id

        deaf = Deaf()
        harness = await home.coordinator(deaf)
        task = shell(COUNTED, str(home.home))
        assert outcomes(await harness.run(task)) == ["RETURNED"]
        assert outcomes(await harness.run(task)) == ["SUCCEEDED"]
        assert deaf.sizes == [1, 1]
        await eventually(lambda: not home.cluster.unfinished("daggyr-"))
        assert home.log() == ["task-0"]
