"""What both modes of the Slurm executor share: settings, client, the environment of jobs, and the folder of their files.

The executor of jobs (jobs/executor.py) and that of pilots (pilots.py) are subclasses. Nothing here asks Slurm for anything.
"""

from __future__ import annotations

import hashlib
import logging
import os
from pathlib import Path
from typing import Any, ClassVar

import msgspec

from daggyr.environment import passes
from daggyr.whole_file import sync_folder, write_whole
from daggyr_server.executors.base import Executor, ExecutorError, Reports
from daggyr_server.executors.context import ExecutorContext
from daggyr_server.executors.seen_starts import SeenStart, behind
from daggyr_server.executors.slurm.client import SlurmClient
from daggyr_server.executors.slurm.commands import SlurmCommands, without_inputs
from daggyr_server.executors.slurm.rest import SlurmRest
from daggyr_server.executors.slurm.settings import SlurmSettings

log = logging.getLogger(__name__)


class SlurmPool(Executor):
    """One pool on a Slurm cluster."""

    Settings: ClassVar[type[msgspec.Struct]] = SlurmSettings
    sized_by: ClassVar[str] = "resources"
    jobs_need: ClassVar[tuple[str, ...]] = ("SLURM_CONF",)  # for Slurm's commands, ours and the tasks' own
    settings: SlurmSettings
    client: SlurmClient

    def __init__(self, pool: str, settings: Any, reports: Reports, context: ExecutorContext) -> None:
        super().__init__(pool, settings, reports, context)
        # Jobs and files of this pool carry this mark, by which they are told from those of others on the same cluster.
        self.mark = hashlib.sha256(f"{context.places_id}\0{pool}".encode()).hexdigest()[:12]
        self.prefix = f"daggyr-{self.mark}-"  # of the names of its jobs
        self._opened = False  # whether the directory was taken into use
        # The environment is read now, because tasks get what the coordinator was started with.
        self._environment = without_inputs(os.environ)
        self.pass_environment = (*settings.pass_environment, *context.pass_environment)
        also = (*self.pass_environment, *self.jobs_need)
        self.job_environment = {name: value for name, value in self._environment.items() if passes(name, also)}

    @property
    def tracker_folder(self) -> Path:
        """Where this tracker's files lie in the pool's directory."""
        return self.settings.directory / self.context.places_id

    async def open(self) -> None:
        """Make the client and the folder. Raises ExecutorError if there is no way to Slurm, or no use of the directory."""
        settings = self.settings
        self.client = SlurmRest(settings) if settings.base_url is not None else SlurmCommands(settings, self._environment)
        try:
            settings.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            if fault := _directory_fault(settings.directory):
                raise ExecutorError(f"pool {self.pool}: {fault}")
            self.tracker_folder.mkdir(mode=0o700, exist_ok=True)
            if reason := self._start_seen():
                raise ExecutorError(f"pool {self.pool}: {reason}")
        except OSError as error:
            raise ExecutorError(f"pool {self.pool}: cannot use the directory {settings.directory}: {error.strerror}") from error
        self._opened = True
        self._note_start()

    @property
    def _mark(self) -> Path:
        return self.tracker_folder / f".{self.prefix}start"

    def _start_seen(self) -> str | None:
        """Why this coordinator must not use the directory, which has seen a start that its tracker lacks; None if it may."""
        try:
            seen = msgspec.json.decode(self._mark.read_bytes(), type=_Mark)
        except (FileNotFoundError, msgspec.DecodeError):
            return None
        where = f"the directory {self.settings.directory}"
        return behind(SeenStart(seen.tracker_id, seen.epoch, seen.life), self.context, where)

    def _note_start(self) -> None:
        """Note this start. On a full disk the mark of the start before stays, which is the same tracker's."""
        context = self.context
        if context.parting:
            return
        try:
            write_whole(self._mark, msgspec.json.encode(_Mark(context.tracker_id, context.epoch, context.life)), synced=True)
            sync_folder(self.tracker_folder)
        except OSError as error:
            log.warning("pool %s: %s cannot be written: %s", self.pool, self._mark, error.strerror)

    def leave_directory(self) -> None:
        """Remove the tracker's folder, and before that the mark if nothing else of this pool is there.

        Raises OSError if anything is left in the folder. A pool that was refused leaves all as it is.
        """
        if not self._opened:
            return
        if not any(path != self._mark and self.mark in path.name for path in self.tracker_folder.iterdir()):
            self._mark.unlink(missing_ok=True)
        self.tracker_folder.rmdir()


class _Mark(msgspec.Struct):
    """The last start of a coordinator that has used the directory for this pool."""

    tracker_id: str
    epoch: int
    life: int


def _directory_fault(directory: Path) -> str | None:
    """Why a pool's directory must not be used: whoever may write there decides what jobs and pilots do as this user."""
    found = directory.stat()
    own = os.geteuid()
    if found.st_uid not in (own, 0):
        return (
            f"its directory {directory} belongs to another user (uid {found.st_uid}), who decides what lies there: "
            f"name another one, or chown {own} {directory}"
        )
    if found.st_mode & 0o022:
        return f"its directory {directory} can be written by others, who could change what jobs do there: chmod go-w {directory}"
    return None
