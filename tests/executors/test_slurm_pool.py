"""What both modes of the Slurm executor share, without a cluster: which class serves a pool."""

from __future__ import annotations

from pathlib import Path

from daggyr_server.executors.slurm.executor import SlurmExecutor
from daggyr_server.executors.slurm.pilots import PilotExecutor
from daggyr_server.executors.slurm.settings import SlurmSettings


def test_the_mode_of_a_pool_chooses_its_class(tmp_path: Path) -> None:
    assert SlurmExecutor.chosen(SlurmSettings(directory=tmp_path)) is SlurmExecutor
    assert SlurmExecutor.chosen(SlurmSettings(directory=tmp_path, mode="pilot")) is PilotExecutor
