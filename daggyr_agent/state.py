"""The agent's state folder: its identity, and the files that hold what attempts write.

    lock        held with flock(2) for as long as the agent lives: a folder belongs to one agent at a time
    agent-id    the agent's random id, kept for ever; every task knows it
    agent-key   what proves that the id is this agent's: random, mode 0600, known to nobody but the coordinator
    journal     what runs, and what was not acknowledged (see `journal`); without agent-id, it is another agent's and is removed
    output/     the captured output of attempts that run or whose result is not acknowledged, named by numbers

A program that clears old files away may take some of it while the agent lives, or all: `mend` makes it again. The folder itself
is locked too, which has systemd-tmpfiles leave it alone (tmpfiles.d(5)).

`main` opens the folder once, and everything else is given what is inside. Of an earlier process's output, what belongs to
results that were not acknowledged is kept, at the start and at the end. The rest is removed, because its attempts are lost.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import secrets
import socket
import stat
import time
from collections.abc import Set
from pathlib import Path

from daggyr.private_folder import hold_folder
from daggyr.whole_file import write_whole

from .journal import Journal
from .presence import PresentError, show

_MAX_ID_BYTES = 128
_KEY_BYTES = 32
_RELEASE_SECONDS = 10.0  # until the lock of an agent that was killed has come free


_log = logging.getLogger(__name__)


class StateError(Exception):
    """A state folder that cannot be used; the message names it, what is wrong and what to do."""


class StateFolder:
    """An opened and locked state folder. `close`, or the end of the process, releases it.

    `is_new` says that the agent has just been given its id, so that nobody has seen it yet.
    """

    def __init__(self, path: Path) -> None:
        """Make the folder (mode 0700) if needed and take it. Raises StateError if another agent has it, or it fails."""
        self.path = path
        self.output = path / "output"
        self._sign: socket.socket | None = None
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.output.mkdir(mode=0o700, exist_ok=True)
            self._itself = hold_folder(path)
            self._lock = os.open(path / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise StateError(f"cannot use the state folder {path}: {error.strerror}") from None
        try:
            self._take_lock()
            os.ftruncate(self._lock, 0)
            os.pwrite(self._lock, f"{os.getpid()}\n".encode(), 0)
            if not (path / "agent-id").exists():  # A journal without its id is another agent's, and what runs is that one's.
                (path / "journal").unlink(missing_ok=True)
            self.agent_id, self.is_new = _identity(path / "agent-id")
            self._sign = self._show()
            self.agent_key = _key(path / "agent-key", is_new=self.is_new)
            self.journal = Journal(path / "journal")
            _clear(self.output, self.journal.output_numbers())
        except OSError as error:
            self._let_go()
            raise StateError(f"cannot use the state folder {path}: {error.strerror}") from None
        except StateError:
            self._let_go()
            raise

    def _take_lock(self) -> None:
        """Take the lock. Raises StateError if another agent has it, OSError if it cannot be taken.

        A process that a killed agent was just starting holds the lock until its program is executed (close-on-exec). It is waited
        for, because only from then on can `leftovers` find it.
        """
        deadline = time.monotonic() + _RELEASE_SECONDS
        while True:
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = os.pread(self._lock, 32, 0).decode("ascii", "replace").strip() or "?"
                if Path("/proc", holder).exists() or time.monotonic() > deadline:
                    raise StateError(
                        f"the agent of process {holder} uses the state folder {self.path}: "
                        "give this one another --name or --state-dir"
                    ) from None
                time.sleep(0.01)
            else:
                return

    def _show(self) -> socket.socket | None:
        try:
            return show(self.agent_id)
        except PresentError as error:
            raise StateError(
                f"the state folder {self.path} is a copy of another one, whose agent runs on this host as process "
                f"{error.process or '?'}: remove agent-id and agent-key from the copy, and this agent is one of its own"
            ) from None

    def mend(self) -> str | None:
        """Make again what was taken away while the agent lives, but for the journal, which mends itself.

        Returns why that cannot be, for a person: a part of a sentence; None if all is there. Any thread may call this.
        """
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.output.mkdir(mode=0o700, exist_ok=True)
            if not self._is_ours(self.path / "lock"):
                self._lock_again()
            for name, content in (("agent-id", self.agent_id), ("agent-key", self.agent_key.hex())):
                with contextlib.suppress(FileExistsError):
                    if not (self.path / name).exists():
                        write_whole(self.path / name, f"{content}\n".encode(), synced=True, replace=False)
        except OSError as error:
            return f"the state folder {self.path} was taken away, and cannot be made again: {error.strerror}"
        except StateError as error:
            return str(error)
        return None

    def _is_ours(self, lock: Path) -> bool:
        try:
            return os.path.samestat(lock.stat(), os.fstat(self._lock))
        except FileNotFoundError:
            return False

    def _lock_again(self) -> None:
        """Take the folder that stands where this one was. Raises StateError if another agent has it, OSError."""
        former, held = self._lock, self._itself
        self._lock = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._lock)
            self._lock = former
            if isinstance(error, BlockingIOError):
                raise StateError(f"another agent uses the state folder {self.path}, which was taken away from this one") from None
            raise
        os.ftruncate(self._lock, 0)
        os.pwrite(self._lock, f"{os.getpid()}\n".encode(), 0)
        self._itself = hold_folder(self.path)
        os.close(former)
        if held >= 0:
            os.close(held)
        _log.warning("the state folder %s was taken away while it was in use, and is made again", self.path)

    def close(self) -> None:
        """Remove output that belongs to no result, and release the folder."""
        self.journal.close()
        with contextlib.suppress(OSError):
            _clear(self.output, self.journal.output_numbers())
        self._let_go()

    def _let_go(self) -> None:
        if self._sign is not None:
            self._sign.close()
        os.close(self._lock)
        if self._itself >= 0:
            os.close(self._itself)


def _identity(path: Path) -> tuple[str, bool]:
    """The agent's id, and whether it was made now."""
    is_new = False
    try:
        identity = path.read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        identity, is_new = secrets.token_hex(16), True
        write_whole(path, f"{identity}\n".encode(), synced=True)
    except UnicodeDecodeError:
        identity = ""
    if not identity or not identity.isprintable() or len(identity) > _MAX_ID_BYTES:
        raise StateError(f"{path} holds no agent id: remove it, and the agent makes itself another")
    return identity, is_new


def _key(path: Path, *, is_new: bool) -> bytes:
    """The agent's key. If there is none, one is made, which a coordinator that knows another key takes only after `forget`."""
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            text = file.read(4 * _KEY_BYTES)
    except FileNotFoundError:
        if not is_new:
            _log.warning(
                "%s is not there: the agent makes itself another, which no coordinator takes that knows the former", path
            )
        key = secrets.token_bytes(_KEY_BYTES)
        write_whole(path, f"{key.hex()}\n".encode(), synced=True)
        return key
    if stat.S_IMODE(mode) & 0o077:
        raise StateError(f"{path} may be read by others (mode {stat.S_IMODE(mode):04o}): chmod 600 {path}")
    try:
        key = bytes.fromhex(text.decode("ascii").strip())
    except ValueError:
        key = b""
    if len(key) != _KEY_BYTES:
        raise StateError(
            f"{path} holds no agent key: remove it, and the agent makes itself another "
            "(`daggyr agent forget NAME` has the coordinator take that)"
        )
    return key


def _clear(folder: Path, keep: Set[int]) -> None:
    with os.scandir(folder) as entries:
        for entry in entries:
            number = entry.name.split(".")[0]
            if number.isdecimal() and int(number) not in keep:
                os.unlink(entry.path)  # noqa: PTH108
