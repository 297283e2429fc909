"""An sshd of the tests' own, from Debian's `openssh-server` package: real logins on loopback, with keys and a port of its own.

Its files are in a temporary folder, it knows one client key, and it dies with the process that started it. Logins are the
running user's; as root, `account` makes others, with a home, a login shell and start-up files of a test's choice. Whoever logs
in gets the variables that the server was given, so that even HOME is a test's.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import asyncssh
import psutil
import pytest

from support.waiting import DEADLINE, until

_PROGRAM = Path("/usr/sbin/sshd")


@contextlib.contextmanager
def sshd_server(environment: Mapping[str, str] | None = None, *lines: str) -> Iterator[SshdServer]:
    """A server, started; ended and removed in the end. `lines` go into its configuration.

    Skips the test without the package, in CI it fails.
    """
    if not _PROGRAM.exists():
        reason = "sshd is not installed: apt-get install openssh-server"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    folder = Path(tempfile.mkdtemp(prefix="daggyr-sshd-"))
    try:
        folder.chmod(0o755)  # other accounts' sessions read the keys that may log in
        server = SshdServer(folder, environment or {}, lines)
        server.start()
        try:
            yield server
        finally:
            server.close()
    finally:
        shutil.rmtree(folder)


class SshdServer:
    """Life: `start`, then any number of `stop` (or `cut`) and `start`, at last `close`; its port stays the same."""

    def __init__(self, folder: Path, environment: Mapping[str, str], lines: tuple[str, ...]) -> None:
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        self.user = pwd.getpwuid(os.getuid()).pw_name
        self.private_key = self._key("client")
        self.host_key = self._key("host")
        self.let_in(self.private_key)
        # Bound, and not listening: nobody else is given the port, and the server listens there all the same (SO_REUSEADDR).
        self._reserved = socket.socket()
        self._reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._reserved.bind(("127.0.0.1", 0))
        self.port: int = self._reserved.getsockname()[1]
        self.known_hosts = folder / "known_hosts"
        self.known_hosts.write_text(f"[127.0.0.1]:{self.port} {self.public_host_key}\n")
        self.ssh_config = folder / "ssh_config"
        self.ssh_config.touch()
        self._configuration = folder / "sshd_config"
        setting = " ".join(f'{name}="{value}"' for name, value in environment.items())
        self._configuration.write_text(
            f"Port {self.port}\nListenAddress 127.0.0.1\nHostKey {self.host_key}\nPidFile none\n"
            f"AuthorizedKeysFile {folder}/authorized_keys\nStrictModes no\nUsePAM no\nPasswordAuthentication no\n"
            f"KbdInteractiveAuthentication no\nPermitRootLogin prohibit-password\nLogLevel VERBOSE\n"
            + (f"SetEnv {setting}\n" if setting else "")
            + "".join(f"{line}\n" for line in lines)
        )

    @property
    def public_host_key(self) -> str:
        return self._public(self.host_key).decode().strip()

    @property
    def log(self) -> str:
        return (self._folder / "log").read_text(errors="replace")

    def target(self, name: str = "target", **changes: Any) -> dict[str, Any]:
        """The settings of a target that is this server."""
        return {
            "name": name,
            "host": "127.0.0.1",
            "port": self.port,
            "user": self.user,
            "private_key_file": self.private_key,
            "resources": {"cores": 2, "memory_mb": 1_000},
            **changes,
        }

    def let_in(self, private_key: Path) -> None:
        """Let this key log in, and no other."""
        (self._folder / "authorized_keys").write_bytes(self._public(private_key))

    def start(self) -> None:
        """Returns when connections are accepted. To be called in the main thread."""
        if os.getuid() == 0:
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # where it locks itself in before a login
        # setpriv, so that the server is told when this process dies: PR_SET_PDEATHSIG in prctl(2).
        argv = ["setpriv", "--pdeathsig", "TERM", str(_PROGRAM), "-D", "-e", "-f", str(self._configuration)]
        with open(self._folder / "log", "ab") as log:
            self._process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        deadline = time.monotonic() + DEADLINE
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
                return
            except OSError:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    raise AssertionError(f"sshd does not start: {self.log}") from None
            time.sleep(0.01)

    def cut(self) -> int:
        """Kill what serves connections, as a broken line would end it; what runs in them goes on. Returns how many there were."""
        assert self._process is not None
        killed = 0
        for process in psutil.Process(self._process.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                if process.name().startswith("sshd"):
                    process.kill()
                    killed += 1
        return killed

    def stop(self) -> None:
        """End the server and all its connections; what runs in them goes on."""
        process = self._process
        if process is not None:
            process.send_signal(signal.SIGSTOP)  # it takes nobody in any more
            self.cut()
            process.kill()
            process.wait(timeout=DEADLINE)
            self._process = None

    def close(self) -> None:
        """End it; its port is anybody's."""
        self.stop()
        self._reserved.close()

    def connections(self) -> int:
        """How many are open."""
        assert self._process is not None
        return len(psutil.Process(self._process.pid).children())

    def _key(self, name: str) -> Path:
        path = self._folder / name
        key = asyncssh.generate_private_key("ssh-ed25519")
        path.write_bytes(key.export_private_key())
        path.chmod(0o600)
        path.with_suffix(".pub").write_bytes(key.export_public_key())
        return path

    def _public(self, path: Path) -> bytes:
        return path.with_suffix(".pub").read_bytes()


@contextlib.contextmanager
def account(shell: str = "/bin/sh") -> Iterator[pwd.struct_passwd]:
    """A new account with a home and this login shell, removed in the end. Skips the test unless it runs as root."""
    if os.getuid() != 0:
        pytest.skip("only root can make an account")
    name = f"daggyr-{secrets.token_hex(4)}"
    home = tempfile.mkdtemp(prefix="daggyr-home-")
    subprocess.run(["useradd", "--no-create-home", "--home-dir", home, "--shell", shell, name], check=True)
    try:
        subprocess.run(["usermod", "-p", "*", name], check=True)  # without a password, but not locked: sshd(8)
        user = pwd.getpwnam(name)
        os.chown(home, user.pw_uid, user.pw_gid)
        yield user
    finally:
        until(lambda: _no_process_of(user.pw_uid), f"the end of all processes of {name}")
        subprocess.run(["userdel", name], check=True)
        shutil.rmtree(home)


def _no_process_of(uid: int) -> bool:
    """Kill what a user runs; whether there was nobody. userdel(8) takes those that end for running."""
    nobody = True
    for process in psutil.process_iter(["uids"]):
        with contextlib.suppress(psutil.Error):
            if process.info["uids"].real == uid:
                nobody = False
                process.kill()
    return nobody
