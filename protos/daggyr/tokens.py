"""Where tokens and state lie for one user of one host, and how a token is read.

The server makes a token for each role at its first start; that user's clients and agents find it here by themselves.
Elsewhere a copy of the file is named with `--token-file`. Nothing here prints a token or puts it into an error.
"""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

Role = Literal["client", "agent"]

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
    """The token in `path`, without surrounding white space.

    Raises TokenError if there is no such file, if it holds anything but one word of printable ASCII, or if others than its
    owner may read it.
    """
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            data = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise TokenError(f"cannot read the token file {path}: {error.strerror}") from None
    if stat.S_ISREG(mode) and mode & 0o077:
        raise TokenError(f"the token file {path} may be read by others (mode {mode & 0o777:04o}): chmod 600 {path}")
    words = data.split()
    if len(data) > _MAX_BYTES or len(words) != 1 or not (words[0].isascii() and words[0].decode("ascii").isprintable()):
        raise TokenError(f"the token file {path} does not hold one word: copy it again from the server's host")
    return words[0].decode("ascii")


def make_token(role: Role, path: Path) -> str:
    """The token in `path`, made first (mode 0600, its folder 0700) if there is none.

    Two servers that start at once agree on one token. Raises TokenError if the file can be neither made nor read.
    """
    if path.exists():  # where secrets are handed in, in containers, nothing can be written beside them
        return read_token(path)
    token = f"daggyr-{role}-{secrets.token_urlsafe(32)}"
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
        with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="ascii") as file:
            file.write(token + "\n")
        try:
            path.hardlink_to(draft)
        except FileExistsError:
            pass
        finally:
            draft.unlink()
    except OSError as error:
        raise TokenError(f"cannot make the token file {path}: {error.strerror}") from None
    return read_token(path)
