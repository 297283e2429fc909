"""Where tokens and state lie for one user of one host, and how a token is read.

The server makes a token for each role at its first start, and clients and agents of the same user find it here by themselves. On
other hosts, a copy of the file is named with `--token-file`. Server, clients and agents hold all token files to the same rules:

- A file of this process's user: nobody else may do anything with it (0600, 0400).
- A file of root: group and others may read it if nobody may write it, root included (0400, 0440, 0444). Secrets that are mounted
  into containers and systemd's credentials have such modes; a file that was left open by mistake (0644) has another.
- A file of any other user is refused, because that user decides what stands in it.

Nothing here prints a token or puts it into an error.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from daggyr.whole_file import write_whole

Role = Literal["client", "agent"]

MIN_BYTES = 16  # of a token, because shorter ones can be guessed
_MAX_BYTES = 4096


class TokenError(Exception):
    """A token file that cannot be used; the message names the file, what is wrong and what to do, never the token."""


def state_folder(environment: Mapping[str, str]) -> Path:
    """The user's folder for DaggyR's state: `$XDG_STATE_HOME/daggyr`, by default `~/.local/state/daggyr`.

    The rule is the XDG Base Directory Specification's: a relative XDG_STATE_HOME is ignored. Raises TokenError for a user who has
    neither that nor a home folder.
    """
    base = environment.get("XDG_STATE_HOME", "")
    if base.startswith("/"):
        return Path(base) / "daggyr"
    try:
        home = Path(environment.get("HOME") or "~").expanduser()
    except RuntimeError:  # HOME is not set, and the user's number is not in the list of users
        raise TokenError(
            f"user {os.geteuid()} has no home folder, where tokens and state are kept otherwise: "
            "set HOME, or XDG_STATE_HOME to the whole path of a folder of this user"
        ) from None
    return home / ".local/state/daggyr"


def token_file(role: Role, environment: Mapping[str, str]) -> Path:
    """Where the server keeps the token of `role` unless told otherwise."""
    return state_folder(environment) / f"{role}.token"


def read_token(path: Path) -> str:
    """The token in `path`, which a server made or somebody chose for it. Raises TokenError as `read_secret` does, and for one of
    less than MIN_BYTES."""
    token = read_secret(path)
    if len(token) < MIN_BYTES:
        raise TokenError(
            f"the token in {path} has {len(token)} bytes, which can be guessed; {MIN_BYTES} are needed: remove that file "
            "where the server keeps it, and the server makes a good one at its next start"
        )
    return token


def read_secret(path: Path) -> str:
    """The word in a file, without surrounding white space: a token of DaggyR's, or of another service (slurmrestd).

    Raises TokenError if there is no such file, if it holds anything but one word of printable ASCII, or if others may do more
    with it than the rules above say.
    """
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            data = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise TokenError(f"cannot read the token file {path}: {error.strerror}") from None
    if stat.S_ISREG(status.st_mode):
        _check_owner(path, status)
    words = data.split()
    if len(data) > _MAX_BYTES or len(words) != 1 or not (words[0].isascii() and words[0].decode("ascii").isprintable()):
        raise TokenError(f"the token file {path} does not hold one word: copy it again from where it was made")
    return words[0].decode("ascii")


def _check_owner(path: Path, status: os.stat_result) -> None:
    """The rules at the head of this file. Raises TokenError."""
    mode, own = stat.S_IMODE(status.st_mode), os.geteuid()
    if status.st_uid not in (own, 0):
        raise TokenError(
            f"the token file {path} belongs to another user (uid {status.st_uid}), who decides what stands in it: "
            f"make a copy of your own with mode 0600 and name that, or chown {own} {path}"
        )
    mounted = status.st_uid == 0 and not mode & 0o222
    if mode & 0o077 and not mounted:
        can = "be written" if mode & 0o022 else "be read"
        raise TokenError(f"the token file {path} may {can} by others (mode {mode:04o}): chmod 600 {path}")


def make_token(role: Role, path: Path) -> str:
    """The token in `path`, made first (mode 0600, its folder 0700) if there is none.

    Two servers that start at once agree on one token. Raises TokenError if the file can be neither made nor read.
    """
    if path.exists():  # where secrets are handed in, in containers, nothing can be written beside them
        return read_token(path)
    token = f"daggyr-{role}-{secrets.token_urlsafe(32)}"
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            write_whole(path, f"{token}\n".encode(), replace=False)
    except OSError as error:
        raise TokenError(f"cannot make the token file {path}: {error.strerror}") from None
    return read_token(path)
