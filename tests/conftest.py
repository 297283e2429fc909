"""What tests of all folders share: this file's folder is on the import path, so that they find the modules beside it.

It takes away what a shell may have set and programs would heed, and tells Hypothesis that time means nothing.
"""

from __future__ import annotations

import os
import signal

import pytest
from hypothesis import HealthCheck, settings
from support import slurm_cluster

# How wide and colourful a terminal is, and where databases are (libpq's variables begin with PG): each test says so itself.
FOREIGN = ("CLICOLOR", "COLUMNS", "FORCE_COLOR", "LINES", "NO_COLOR", "PG", "TTY_")

# A machine may stand still at any moment: no example is too slow. What fails says how it is found again, on any machine. All else
# is as Hypothesis has it by default, which in CI tries the same examples each time.
settings.register_profile("tests", settings(), deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True)
settings.load_profile("tests")


def pytest_configure() -> None:
    for name in [name for name in os.environ if name.startswith(FOREIGN)]:
        del os.environ[name]
    # In the background of a shell, or under nohup, these are ignored, and would be by all programs that tests start.
    for number, usual in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, usual)


def pytest_sessionfinish(session: pytest.Session) -> None:
    slurm_cluster.end()
