"""A pgbouncer of the tests' own, from Debian's package of that name, before a Postgres server of the tests.

Its files and its socket are in a temporary folder, it listens on no port, and it dies with the process that started it. As root
it runs as the user `postgres`, because it refuses to run as root.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from support.postgres_server import PostgresServer
from support.waiting import DEADLINE

PROGRAM = Path("/usr/sbin/pgbouncer")
PORT = 6432  # the end of its socket's name
CONFIG = """
[databases]
* = host={host} user={user}
[pgbouncer]
listen_addr =
listen_port = {port}
unix_socket_dir = {folder}
logfile = {folder}/log
auth_type = any
pool_mode = {mode}
default_pool_size = {size}
"""


@contextlib.contextmanager
def pgbouncer(server: PostgresServer, mode: str, size: int = 20, *, user: str) -> Iterator[Path]:
    """The folder of its socket. `user` is the database's for everybody. Skips the test without the package, in CI it fails."""
    if not PROGRAM.exists():
        reason = "pgbouncer is not installed: apt-get install pgbouncer"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    folder = Path(tempfile.mkdtemp(prefix="daggyr-pgb-"))  # a socket has to have a short path
    identity: list[str] = []
    try:
        (folder / "ini").write_text(CONFIG.format(host=server.folder, user=user, port=PORT, folder=folder, mode=mode, size=size))
        if os.getuid() == 0:
            own = pwd.getpwnam("postgres")
            identity = [f"--reuid={own.pw_uid}", f"--regid={own.pw_gid}", "--clear-groups"]
            os.chown(folder, own.pw_uid, own.pw_gid)
            os.chown(folder / "ini", own.pw_uid, own.pw_gid)
        process = subprocess.Popen(
            ["setpriv", *identity, "--pdeathsig", "KILL", str(PROGRAM), str(folder / "ini")],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=folder,
        )
        try:
            _until_it_answers(process, folder)
            yield folder
        finally:
            process.kill()
            process.wait()
    finally:
        shutil.rmtree(folder)


def _until_it_answers(process: subprocess.Popen[bytes], folder: Path) -> None:
    deadline = time.monotonic() + DEADLINE
    while True:
        try:
            psycopg.connect(f"postgresql://any@/postgres?host={folder}&port={PORT}").close()
            return
        except psycopg.OperationalError as error:
            if process.poll() is not None or time.monotonic() > deadline:
                log = folder / "log"
                raise AssertionError(f"pgbouncer: {error}\n{log.read_text() if log.exists() else ''}") from None
        time.sleep(0.02)
