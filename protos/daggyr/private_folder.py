"""A new folder for one program's socket and files, below the system's folder for temporary files.

`daggyr run` (for its own server) and the local pool (for its agent) ask. Whoever asked removes it. Nothing here is shared with
other users: the folder's mode is 0700.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

# A socket's path must fit sockaddr_un (unix(7): 108 bytes with the NUL); this leaves room for its name.
_MAX_FOLDER_BYTES = 90


def private_folder(prefix: str) -> Path:
    """A new folder whose path leaves room for a socket's name. Raises OSError, whose `strerror` says what to do."""
    try:
        folder = Path(tempfile.mkdtemp(prefix=prefix))
        if len(os.fsencode(folder)) > _MAX_FOLDER_BYTES:
            folder.rmdir()
            folder = Path(tempfile.mkdtemp(prefix=prefix, dir="/tmp"))
    except OSError as error:
        # Where no folder at all will do, tempfile puts a list of those that it tried in the place of the system's word.
        none_will_do = error.filename is None
        wanted = os.environ.get("TMPDIR") or "/tmp" if none_will_do else Path(error.filename).parent
        where = f"{wanted} (set TMPDIR to a folder of yours with a short path)"
        why = "no folder for temporary files can be written" if none_will_do else str(error.strerror)
        raise OSError(error.errno, f"no private folder can be made in {where}: {why}") from None
    return folder
