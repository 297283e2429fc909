"""What this host has seen of each tracker: its last start here, in a small file of the user's state folder, by the tracker's id.

The coordinator calls `check_seen` once it has opened a durable tracker. An older copy that was put in the tracker's place, or in
another place on this host, lacks that start, and is refused. One that lacks nothing is refused too while a coordinator serves the
tracker elsewhere on this host, because it was copied from under that one and would run the same again. The file is written anew
at each start, and never read by anybody else; without it, or where it cannot be written, nothing is refused.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
from collections.abc import Mapping
from pathlib import Path

import msgspec

from daggyr.lives import has_seen
from daggyr.tokens import TokenError, state_folder
from daggyr.whole_file import sync_folder, write_whole
from daggyr_server.trackers.base import Opened, TrackerError
from daggyr_server.trackers.sql.sqlite.lock import boot_id

log = logging.getLogger(__name__)

MOST = 1_000  # trackers that are remembered; of more, those that were opened longest ago are forgotten
_TRACKER_ID = re.compile(r"[0-9A-Za-z]{1,64}")


class _Start(msgspec.Struct):
    """The last start of a coordinator on a tracker; where and by which process, unless an older version wrote it."""

    epoch: int
    life: int
    where: str = ""
    process: int = 0
    born: str = ""  # what tells the process from another one that has its number


def check_seen(opened: Opened, where: str, environment: Mapping[str, str]) -> None:
    """Refuse a tracker that lacks the start that this host saw last; remember this start otherwise.

    `where` names the tracker in messages. Raises TrackerError.
    """
    if not opened.durable or not _TRACKER_ID.fullmatch(opened.tracker_id):
        return
    try:
        path = state_folder(environment) / "trackers" / opened.tracker_id
    except TokenError:  # a user without a home folder has no place for it
        return
    last = _read(path)
    if last is not None and last.where != where and last.process != os.getpid() and _serves(last):
        raise TrackerError(
            f"the tracker {where} is a copy of {last.where}, which process {last.process} serves on this host: both would run "
            "the same. To serve a copy, make it with `daggyr-server backup` and `restore`; or stop that process and start again"
        )
    if last is not None and not has_seen(opened.lives, last.epoch, last.life):
        raise TrackerError(
            f"the tracker {where} is an older copy of itself: this host has seen start {last.epoch} of it, which the copy lacks. "
            "Bring the newest one back; or go on with this one as another life of it: daggyr-server restore (its --help says how)"
        )
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        start = _Start(opened.epoch, opened.life, where, os.getpid(), _born(os.getpid()))
        write_whole(path, msgspec.json.encode(start), synced=True)
        sync_folder(path.parent)
        _forget_oldest(path.parent)
    except OSError as error:
        log.warning("%s cannot be written (%s): an older copy of the tracker would not be noticed here", path, error.strerror)


def _serves(last: _Start) -> bool:
    """Whether the process of that start is still there."""
    return last.process > 0 and last.born != "" and last.born == _born(last.process)


def _born(process: int) -> str:
    """In which boot, namespace of process numbers and clock tick a process began; empty if it has ended or is not seen."""
    with contextlib.suppress(OSError, IndexError):
        fields = Path(f"/proc/{process}/stat").read_text(encoding="latin-1").rpartition(")")[2].split()
        if fields[0] not in ("Z", "X") and (boot := boot_id()):
            return f"{boot} {Path('/proc/self/ns/pid').readlink()} {fields[19]}"
    return ""


def _read(path: Path) -> _Start | None:
    with contextlib.suppress(OSError, msgspec.DecodeError):
        return msgspec.json.decode(path.read_bytes(), type=_Start)
    return None


def _forget_oldest(folder: Path) -> None:
    files = list(folder.iterdir())
    if len(files) > MOST:
        files.sort(key=lambda file: file.stat().st_mtime)
        for file in files[: len(files) - MOST]:
            file.unlink(missing_ok=True)
