"""What this host has seen of each tracker: its last start here, in a small file of the user's state folder, by the tracker's id.

The coordinator calls `check_seen` once it has opened a durable tracker. An older copy that was put in the tracker's place, or in
another place on this host, lacks that start, and is refused. The file is written anew at each start, and never read by anybody
else; without it, or where it cannot be written, nothing is refused.
"""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Mapping
from pathlib import Path

import msgspec

from daggyr.lives import has_seen
from daggyr.tokens import TokenError, state_folder
from daggyr.whole_file import sync_folder, write_whole
from daggyr_server.trackers.base import Opened, TrackerError

log = logging.getLogger(__name__)

MOST = 1_000  # trackers that are remembered; of more, those that were opened longest ago are forgotten
_TRACKER_ID = re.compile(r"[0-9A-Za-z]{1,64}")


class _Start(msgspec.Struct):
    """The last start of a coordinator on a tracker."""

    epoch: int
    life: int


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
    if last is not None and not has_seen(opened.lives, last.epoch, last.life):
        raise TrackerError(
            f"the tracker {where} is an older copy of itself: this host has seen start {last.epoch} of it, which the copy lacks. "
            "Bring the newest one back; or go on with this one as another life of it: daggyr-server restore (its --help says how)"
        )
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_whole(path, msgspec.json.encode(_Start(opened.epoch, opened.life)), synced=True)
        sync_folder(path.parent)
        _forget_oldest(path.parent)
    except OSError as error:
        log.warning("%s cannot be written (%s): an older copy of the tracker would not be noticed here", path, error.strerror)


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
