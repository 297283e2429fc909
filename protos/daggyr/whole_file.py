"""Files that are there whole or not at all, whatever ends this process: written under another name, then put in place.

The daemons write with it what another process, or their own next one, reads: tokens, ids, manifests, addresses. It never changes
a file that is there: it puts another one in its place, or leaves it alone.
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path


def write_whole(path: Path, data: bytes, *, mode: int = 0o600, synced: bool = False, replace: bool = True) -> None:
    """Make the file `path` of these bytes, with this mode less the umask.

    With `synced`, its bytes are on the disk before its name is, so that a loss of power leaves it whole or not there;
    `sync_folder` makes the name durable as well. With `replace`, it takes the place of a file that is there; else that raises
    FileExistsError, so that of several who try at once, one succeeds. Raises OSError, with nothing left behind.
    """
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        with open(descriptor, "wb") as file:
            file.write(data)
            if synced:
                file.flush()
                os.fsync(descriptor)
        if replace:
            draft.replace(path)
        else:
            path.hardlink_to(draft)
    finally:
        draft.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable: what was made, renamed or removed there survives a loss of power. Raises OSError."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
