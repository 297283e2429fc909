"""How attempts become jobs of Slurm: arrays, the bound on jobs, stop and recall, private files, and a token that has expired.

The cluster is real. The jobs of a test are ended with it.
"""

from __future__ import annotations

import asyncio
import contextlib
import stat
from pathlib import Path
from typing import Any

import psutil
from executor_harness import eventually, pid_in
from executor_kinds import CORES, slurm
from slurm_place import FOR_EVER, Counting, Place, outcomes
from support.slurm_cluster import SlurmCluster
from support.task_specs import shell, spec


class TestTogether:
    """How attempts become jobs."""

    async def test_EqualNeedsShareAnArray(self, place: Place) -> None:
        counting = Counting()
        harness = await place.coordinator(counting)
        wide = spec("/bin/true", resources={"cores": CORES})
        told = await harness.run(*[spec("/bin/true")] * 5, wide, spec("/bin/true"), wide)
        assert set(outcomes(told)) == {"SUCCEEDED"}
        assert counting.sizes == [6, 2]

    async def test_NoMoreThanItMayAreInSlurm(self, home: Place) -> None:
        counting = Counting()
        harness = await home.coordinator(counting, max_jobs=2)
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
        """A task's command and environment are in private files, neither in arguments nor in what Slurm shows of a job."""
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
