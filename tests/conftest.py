"""What tests of all folders share: this file's folder is on the import path, so that they find the modules beside it."""

from __future__ import annotations

import pytest
import slurm_cluster


def pytest_sessionfinish(session: pytest.Session) -> None:
    slurm_cluster.end()
