"""Drafts: files that are made whole under another name beside their own, so that whoever is killed meanwhile leaves none of it.

`backup` and `restore` make them. A draft is `.NAME.HEX`; what sqlite puts beside it goes with it. A file `.NAME.HEX-draft`, which
is there before the draft and after it, is locked (flock(2)) by whoever makes it: an unlocked one was left by a program that was
killed. The next draft for the same name removes what was left, so that its room is free. The lock is on a file of its own,
because some file systems know one kind of lock only, and sqlite locks the draft.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import secrets
from collections.abc import Iterator
from pathlib import Path

_SIGN = "-draft"
_ENDS = ("", "-wal", "-shm", "-journal", "-lock", _SIGN)  # the sign goes last


@contextlib.contextmanager
def draft_beside(destination: Path) -> Iterator[Path]:
    """A new empty file beside `destination`, of mode 0600. It goes in the end, with what is beside it. Raises OSError."""
    for left in _signs(destination):
        _remove_if_left(left)
    draft = destination.with_name(f".{destination.name}.{secrets.token_hex(8)}")
    sign = _made(draft.with_name(f"{draft.name}{_SIGN}"))
    try:
        with contextlib.suppress(OSError):  # Where there are no locks, nothing is taken for left behind.
            fcntl.flock(sign, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.close(_made(draft))
        yield draft
    finally:
        _remove(draft)
        os.close(sign)


def was_interrupted(destination: Path) -> bool:
    """Whether a draft for this place is on its way, or was left by a program that was killed. Raises nothing."""
    return bool(_signs(destination))


def _signs(destination: Path) -> list[Path]:
    name = re.compile(re.escape(f".{destination.name}.") + "[0-9a-f]{16}" + _SIGN)
    try:
        return [Path(entry.path) for entry in os.scandir(destination.parent) if name.fullmatch(entry.name)]
    except OSError:  # told when the draft is made
        return []


def _made(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)


def _remove_if_left(sign: Path) -> None:
    with contextlib.suppress(OSError):  # It is another user's, or has gone, or is locked: somebody is at work on it.
        descriptor = os.open(sign, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _remove(sign.with_name(sign.name.removesuffix(_SIGN)))
        finally:
            os.close(descriptor)


def _remove(draft: Path) -> None:
    for end in _ENDS:
        draft.with_name(draft.name + end).unlink(missing_ok=True)
