"""A folder for the sockets of one process, in the folder for temporary files, which the next process removes if this one is
killed.

`daggyr run` and local pools make one. The folder has a file `owner`, which its process keeps locked (flock(2)) for as long as it
lives; the system drops the lock when the process ends in any way. `abandoned` finds the folders of this user whose process is
gone, so that the next process removes them. A folder without that file, of another name or of another user is never touched.
The folder itself is locked as well, which has systemd-tmpfiles leave it alone, however old its files are (tmpfiles.d(5)).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

OWNER = "owner"
_CONTENT = b"daggyr: removed once nobody locks this file\n"
# A socket's path must fit sockaddr_un (unix(7): 108 bytes with the NUL).
_MAX_FOLDER_BYTES = 90
_MOST = 1000  # entries of a folder for temporary files that are looked at


class PrivateFolder:
    """A new folder of mode 0700 that belongs to this process; `remove` takes it away with what is in it."""

    def __init__(self, prefix: str) -> None:
        """`prefix` begins its name. Its path leaves room for a socket's name.

        Raises OSError, whose `strerror` says what to do.
        """
        try:
            self._make(prefix)
        except OSError as error:
            # Where no folder at all will do, tempfile puts a list of those that it tried in the place of the system's word.
            none_will_do = error.filename is None
            wanted = os.environ.get("TMPDIR") or "/tmp" if none_will_do else Path(error.filename).parent
            where = f"{wanted} (set TMPDIR to a folder of yours with a short path)"
            why = "no folder for temporary files can be written" if none_will_do else str(error.strerror)
            raise OSError(error.errno, f"no private folder can be made in {where}: {why}") from None

    def _make(self, prefix: str) -> None:
        folder = Path(tempfile.mkdtemp(prefix=prefix)).absolute()
        if len(os.fsencode(folder)) > _MAX_FOLDER_BYTES:
            folder.rmdir()
            folder = Path(tempfile.mkdtemp(prefix=prefix, dir="/tmp"))
        self.path = folder
        self._itself = hold_folder(folder)
        self._lock = os.open(folder / OWNER, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        # The lock comes before the content, because only a file with this content may be removed. A process that looks whether a
        # folder is abandoned holds the lock for a moment, and this one then waits for it.
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        os.write(self._lock, _CONTENT)

    def remove(self) -> None:
        """Remove the folder. What cannot be removed stays, and `abandoned` finds it later."""
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._lock)
        if self._itself >= 0:
            os.close(self._itself)


def hold_folder(folder: Path) -> int:
    """Keep systemd-tmpfiles from what is in a folder, as long as the descriptor that is returned is open; -1 if none can be."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return -1
    with contextlib.suppress(OSError):  # Some file systems have no such lock.
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    return descriptor


def abandoned(prefix: str) -> Iterator[Path]:
    """This user's folders of a name with `prefix` whose process is gone. Raises nothing."""
    try:
        parents = dict.fromkeys((Path(tempfile.gettempdir()), Path("/tmp")))
    except OSError:  # there is no folder for temporary files; PrivateFolder tells that
        return
    for parent in parents:
        with contextlib.suppress(OSError), os.scandir(parent) as entries:
            for _, entry in zip(range(_MOST), (each for each in entries if each.name.startswith(prefix)), strict=False):
                if is_abandoned(Path(entry.path)):
                    yield Path(entry.path)


def is_abandoned(folder: Path) -> bool:
    """Whether `folder` was made here by a process of this user that is gone. Raises nothing."""
    try:
        found = folder.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
            return False
        lock = os.open(folder / OWNER, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.read(lock, len(_CONTENT) + 1) == _CONTENT
    except OSError:
        return False
    finally:
        os.close(lock)
