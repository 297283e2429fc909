"""What both modes of the Slurm executor share, without a cluster: which class serves a pool, and which start may use it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from executor_harness import CollectedReports, executor_context

from daggyr_server.executors.base import ExecutorError
from daggyr_server.executors.slurm.executor import SlurmExecutor
from daggyr_server.executors.slurm.pilots import PilotExecutor
from daggyr_server.executors.slurm.pool import SlurmPool
from daggyr_server.executors.slurm.settings import SlurmSettings


def test_the_mode_of_a_pool_chooses_its_class(tmp_path: Path) -> None:
    assert SlurmExecutor.chosen(SlurmSettings(directory=tmp_path)) is SlurmExecutor
    assert SlurmExecutor.chosen(SlurmSettings(directory=tmp_path, mode="pilot")) is PilotExecutor


# Starts of one tracker. Copies of it lack the third, and went on from the second by themselves.
THIRD = {"epoch": 3, "life": 30, "lives": {1: 10, 2: 20, 3: 30}}
FOURTH = {"epoch": 4, "life": 40, "lives": {**THIRD["lives"], 4: 40}}  # type: ignore[dict-item]
COPIES = [
    pytest.param({"epoch": 2, "life": 21, "lives": {1: 10, 2: 21}}, "has not reached: it is at start 2", id="behind"),
    pytest.param({"epoch": 3, "life": 31, "lives": {1: 10, 2: 21, 3: 31}}, "was another one than this copy's", id="beside"),
    pytest.param({"epoch": 4, "life": 41, "lives": {1: 10, 2: 21, 3: 31, 4: 41}}, "was another one than this copy's", id="ahead"),
]
RESTORED = {"tracker_id": "restored", "first_id": "tracker-1", "epoch": 10_003, "life": 7, "lives": {1: 10, 10_003: 7}}


async def start_ends(settings: SlurmSettings, context: dict[str, Any], *, killed: bool = True) -> None:
    """Open a pool and close it; one that is `killed` leaves a submission behind. Raises ExecutorError."""
    pool = SlurmExecutor.chosen(settings)("pool", settings, CollectedReports(), executor_context(**context))
    assert isinstance(pool, SlurmPool)
    left = pool.tracker_folder / f"{pool.prefix}left"
    try:
        await pool.open()
        left.touch()
        if not killed:
            left.unlink()
    finally:
        await pool.close()
    left.unlink(missing_ok=True)


@pytest.mark.parametrize("mode", ["jobs", "pilot"])
@pytest.mark.parametrize(("copy", "how"), COPIES)
async def test_a_directory_that_has_seen_a_start_refuses_a_copy_without_it(
    tmp_path: Path, mode: Any, copy: dict[str, Any], how: str
) -> None:
    settings = SlurmSettings(directory=tmp_path / "shared", mode=mode)
    await start_ends(settings, THIRD)
    for _ in range(2):  # to be refused changes nothing
        with pytest.raises(ExecutorError) as refused:
            await start_ends(settings, copy)
        assert how in str(refused.value)
        assert f"pool pool: this server's tracker is an older copy of itself: the directory {tmp_path}/shared" in str(
            refused.value
        )
        assert "daggyr-server restore --tracker" in str(refused.value)
    await start_ends(settings, FOURTH)
    await start_ends(settings, RESTORED)
    with pytest.raises(ExecutorError, match="was restored since as another life of itself"):
        await start_ends(settings, FOURTH)


async def test_nothing_stays_in_a_directory_that_holds_nothing(tmp_path: Path) -> None:
    settings = SlurmSettings(directory=tmp_path / "shared")
    await start_ends(settings, THIRD, killed=False)
    assert list((tmp_path / "shared").iterdir()) == []


async def test_what_is_no_mark_is_passed_over(tmp_path: Path) -> None:
    settings = SlurmSettings(directory=tmp_path / "shared")
    await start_ends(settings, THIRD)
    (mark,) = (tmp_path / "shared").glob("*/.*start")
    assert mark.stat().st_mode & 0o777 == 0o600
    mark.write_bytes(b"{")
    await start_ends(settings, COPIES[0].values[0])  # type: ignore[arg-type]
