"""A Postgres server of the tests' own, from Debian's `postgresql` package: tests/trackers and tests/faults start it.

Its files and its socket are in a temporary folder, it listens on no port, and it dies with the process that started it. As root
it runs as the user `postgres`, because it refuses to run as root; its settings are those of a new installation, fsync too.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import psycopg
import pytest

from support.waiting import DEADLINE


def programs() -> Path | None:
    """The folder of the newest installed version's programs, or None."""
    found = [path.parent for path in Path("/usr/lib/postgresql").glob("*/bin/postgres")]
    return max(found, key=lambda path: float(path.parent.name), default=None)


@contextlib.contextmanager
def postgres_server() -> Iterator[PostgresServer]:
    """A server, started; ended and removed in the end. Skips the test without the package, in CI it fails."""
    where = programs()
    if where is None:
        reason = "Postgres is not installed: apt-get install postgresql"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    folder = Path(tempfile.mkdtemp(prefix="daggyr-postgres-"))  # a socket has to have a short path
    try:
        server = PostgresServer(where, folder)
        server.start()
        try:
            yield server
        finally:
            server.kill()  # nothing of it is wanted any more
    finally:
        shutil.rmtree(folder)


class PostgresServer:
    """Life: `start`, then any number of `stop` (or `kill`) and `start`."""

    def __init__(self, where: Path, folder: Path) -> None:
        self._programs = where
        self.folder = folder
        self._data = folder / "data"
        self._process: subprocess.Popen[bytes] | None = None
        self._as: list[str] = []
        self.user = pwd.getpwuid(os.getuid()).pw_name
        if os.getuid() == 0:
            user = pwd.getpwnam("postgres")
            self.user = user.pw_name
            # Not subprocess's own arguments for that, with which it would fork: a copy of this process, in which gRPC may have
            # threads from earlier tests, does not always come as far as the program.
            self._as = ["setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"]
            os.chown(folder, user.pw_uid, user.pw_gid)
        # Its words and its order of text do not depend on this host's language.
        as_everywhere = ("--no-locale", "--encoding", "UTF8")
        self._run("initdb", "--pgdata", str(self._data), "--auth", "trust", "--username", self.user, "--no-sync", *as_everywhere)

    def url(self, database: str = "postgres", user: str | None = None) -> str:
        # A server that stands still is waited for: one that is gone refuses at once.
        return f"postgresql://{user or self.user}@/{database}?host={self.folder}&connect_timeout={DEADLINE:.0f}"

    def execute(self, *statements: str, database: str = "postgres") -> list[Any]:
        """Run some SQL as the server's owner; the rows of the last statement."""
        rows: list[Any] = []
        with psycopg.connect(self.url(database), autocommit=True) as connection:
            for statement in statements:
                cursor = connection.execute(statement.encode())
                rows = cursor.fetchall() if cursor.description is not None else []
        return rows

    def start(self) -> None:
        """Returns when connections are accepted. To be called in the main thread."""
        # setpriv, so that the server is told when this process dies, or rather the thread that started it: PR_SET_PDEATHSIG in
        # prctl(2).
        argv = [*self._as, "setpriv", "--pdeathsig", "QUIT", str(self._programs / "postgres"), "-D", str(self._data)]
        with open(self.folder / "log", "ab") as log:
            self._process = subprocess.Popen(
                [*argv, "-c", "listen_addresses=", "-k", str(self.folder), "-c", "max_connections=50"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.folder,
            )
        deadline = time.monotonic() + DEADLINE
        while True:
            try:
                psycopg.connect(self.url()).close()
                return
            except psycopg.OperationalError as error:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    raise AssertionError(f"Postgres does not start: {error}\n{(self.folder / 'log').read_text()}") from None
            time.sleep(0.02)

    def stop(self) -> None:
        """End it as an administrator would: connections are cut, what was committed is written. Returns when it is gone."""
        self._end(signal.SIGINT)

    def kill(self) -> None:
        """End it as a crash would, so that it recovers at its next start."""
        self._end(signal.SIGQUIT)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to all processes of the server. Stopped ones take connections and data, and answer nothing."""
        if self._process is not None:
            main = psutil.Process(self._process.pid)
            for process in (main, *main.children(recursive=True)):
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.send_signal(number)

    def _end(self, how: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(how)
            self._process.wait(timeout=DEADLINE)
            self._process = None

    def _run(self, program: str, *arguments: str) -> None:
        done = subprocess.run(
            [*self._as, str(self._programs / program), *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            cwd=self.folder,
            text=True,
        )
        assert done.returncode == 0, f"{program}: {done.stdout}{done.stderr}"
