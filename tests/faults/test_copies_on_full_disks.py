"""`backup` and `restore` onto a disk that takes nothing more: the words name that disk, and no half of a file is left."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.deployment import Deployment
from support.small_disk import SmallDisk, small_disk
from test_live_copies import started
from test_restored_copies import server_command


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    with small_disk(tmp_path / "disk", "size=1m,nr_inodes=32") as disk:
        yield disk


def files(disk: SmallDisk) -> set[str]:
    return {path.name for path in disk.folder.iterdir()} - {"filling", "files", "state.db-lock"}


@pytest.mark.parametrize("use_up", [SmallDisk.fill, SmallDisk.take_inodes], ids=["room", "inodes"])
def test_a_disk_that_is_used_up(deployment: Deployment, disk: SmallDisk, use_up: Callable[[SmallDisk], None]) -> None:
    folder = deployment.folder / "tracker"
    started(deployment, folder).end()
    tracker, good, copy = f"sqlite:{folder}/state.db", deployment.folder / "copy", disk.folder / "copy"
    assert server_command(deployment, "backup", str(good), "--tracker", tracker).code == 0
    target = disk.folder / "state.db"
    use_up(disk)
    backup = server_command(deployment, "backup", str(copy), "--tracker", tracker)
    restore = server_command(deployment, "restore", str(good), "--tracker", f"sqlite:{target}")
    assert (backup.code, restore.code, files(disk)) == (2, 2, set())
    assert f"cannot write {copy}: " in backup.err and str(folder) not in backup.err
    assert str(target) in restore.err and "goes on by itself" not in restore.err
    disk.clear()
    assert server_command(deployment, "backup", str(copy), "--tracker", tracker).code == 0
    assert server_command(deployment, "restore", str(copy), "--tracker", f"sqlite:{target}").code == 0
    assert files(disk) == {"copy", "state.db"}


def test_there_is_nothing_that_could_be_another_life(deployment: Deployment) -> None:
    ended = server_command(deployment, "restore", "--tracker", f"sqlite:{deployment.folder}/state.db")
    assert (ended.code, f"there is no tracker {deployment.folder}/state.db" in ended.err) == (2, True), ended.err
