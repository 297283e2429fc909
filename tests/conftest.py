"""What the tests of all folders share. This file's folder is on the import path, so that tests find `support` beside it.

pytest calls it. It takes variables away that a shell may have set and that programs would heed, tells Hypothesis that time means
nothing, and says which tests stay together on one of the workers that pytest-xdist starts. It starts no service.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from support import left_behind, preloaded, slurm_cluster

# Tests start a thousand programs. Where this variable is set, as in many containers, each of them would compile all modules of
# DaggyR anew, and a server would cost half as much again. Without it, Python keeps what it compiled, as it does for users. Each
# worker would also rewrite the asserts of Hypothesis anew, which takes five seconds: so this comes before its import.
COMPILES_ANEW = "PYTHONDONTWRITEBYTECODE"
sys.dont_write_bytecode = False

from hypothesis import HealthCheck, settings  # noqa: E402

if TYPE_CHECKING:
    from support.postgres_server import PostgresServer

# How wide and colourful a terminal is, and where databases are (libpq's variables begin with PG): each test says so itself.
FOREIGN = ("CLICOLOR", "COLUMNS", "FORCE_COLOR", "LINES", "NO_COLOR", "PG", "TTY_")

# One worker has the tests that need one of these services, because each takes seconds to start. (Tests that wait for Slurm for
# long have a group of their own: slurm_cluster.COPIES_GROUP.) A test needs one if it uses a fixture of that name, or if it is a
# case for a tracker or an executor of that name.
SERVICES_BY_FIXTURE = {"cluster": slurm_cluster.GROUP, "postgres": "postgres"}
SERVICES_BY_CASE = {"slurm": slurm_cluster.GROUP, "postgresql": "postgres"}

# A machine may stand still at any moment: no example is too slow. What fails says how it is found again, on any machine. All else
# is as Hypothesis has it by default, which in CI tries the same examples each time.
settings.register_profile("tests", settings(), deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True)
settings.load_profile("tests")


@pytest.hookimpl(tryfirst=True)  # the folder for temporary files is made from this option
def pytest_configure(config: pytest.Config) -> None:
    if hasattr(config, "workerinput"):
        # A folder of the worker's own, as a process without workers has it: below the controller's, paths of unix sockets
        # (107 bytes at most) would be too long, and programs would put them elsewhere.
        config.option.basetemp = None
    for name in [name for name in os.environ if name.startswith((*FOREIGN, COMPILES_ANEW))]:
        del os.environ[name]
    # In the background of a shell, or under nohup, these are ignored, and would be by all programs that tests start.
    for number, usual in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, usual)


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Long values have their length in a test's name: names go to and from all workers, and a value can be 100 MB."""
    if isinstance(val, str | bytes) and len(val) > 100:
        return f"{argname} of {len(val)}"
    return None


@pytest.hookimpl(tryfirst=True)  # xdist reads the marks in its own hook
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that share a service, or their module's server, so that one worker has them all."""
    for item in items:
        if item.get_closest_marker("xdist_group") is None and (service := _service(item)):
            item.add_marker(pytest.mark.xdist_group(service))


def _service(item: pytest.Item) -> str:
    if "shared" in getattr(item, "fixturenames", ()):
        return item.nodeid.partition("::")[0]  # a fixture of that name is a server for its whole module
    for name, service in SERVICES_BY_FIXTURE.items():
        if name in getattr(item, "fixturenames", ()):
            return service
    callspec = getattr(item, "callspec", None)
    for case in callspec.params.values() if callspec is not None else ():
        if service := SERVICES_BY_CASE.get(case if isinstance(case, str) else getattr(case, "name", ""), ""):
            return service
    return ""


@pytest.fixture(scope="session", autouse=True)
def nothing_is_left() -> Iterator[None]:
    """The session has a folder for temporary files of its own. It fails if there is a process or a file left in the end."""
    folder = left_behind.begin()
    yield
    slurm_cluster.end()
    preloaded.end()
    left_behind.end(folder)


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """A Postgres server of the tests' own, started once for all that are about databases."""
    from support.postgres_server import postgres_server  # here, because most runs of some tests need no database

    with postgres_server() as server:
        yield server
