"""What both modes of the Slurm executor share, without a cluster: which class serves a pool, and which directories are taken."""

from __future__ import annotations

from pathlib import Path

import pytest

from daggyr_server.executors.slurm.executor import SlurmExecutor
from daggyr_server.executors.slurm.pilots import PilotExecutor
from daggyr_server.executors.slurm.pool import check_directory
from daggyr_server.executors.slurm.settings import SlurmSettings


def test_a_directory_that_others_may_write_is_refused(tmp_path: Path) -> None:
    """Another user could put the script of a job, or the address that pilots dial, in the place of ours."""
    check_directory(tmp_path)
    tmp_path.chmod(0o1777)
    with pytest.raises(OSError, match=r"others may write into it.*chmod go-w"):
        check_directory(tmp_path)
    tmp_path.chmod(0o720)
    with pytest.raises(OSError, match="others may write into it"):
        check_directory(tmp_path)


def test_the_mode_of_a_pool_chooses_its_class(tmp_path: Path) -> None:
    assert SlurmExecutor.chosen(SlurmSettings(directory=tmp_path)) is SlurmExecutor
    assert SlurmExecutor.chosen(SlurmSettings(directory=tmp_path, mode="pilot")) is PilotExecutor
