"""What pilots find in the pool's directory: the script of their jobs, their settings, the coordinator's address and its token.

`pilots.py` writes them when the coordinator begins and when its token changes, and reads what pilots have logged. Address and
token are read anew for each session, so that pilots find a coordinator that moved. Both are files of mode 0600, and show neither
in `scontrol show job` nor in `ps` nor in the job's script. Nothing here asks Slurm.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import sys
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path

from daggyr.whole_file import write_whole
from daggyr_server.executors.context import PoolAccess
from daggyr_server.executors.slurm.settings import SlurmSettings

_LOG = "log-"
_MOST_LOGS = 50  # of ended pilots; the oldest are removed
_TAIL_BYTES = 4_096
_MAX_SHOWN = 300  # characters of a log's last line
_GIVEN_BY_SLURM = (
    "CUDA_VISIBLE_DEVICES",
    "ROCR_VISIBLE_DEVICES",
    "SLURM_*",
)  # Slurm sets these for a pilot's job, and they hold for its tasks too


class PilotFiles:
    """The files of one pool's pilots."""

    def __init__(self, folder: Path, settings: SlurmSettings) -> None:
        self._folder = folder
        self._settings = settings

    @property
    def log(self) -> Path:
        """Where a pilot's output goes; %j is Slurm's word for the job's id (sbatch(1), filename pattern)."""
        return self._folder / f"{_LOG}%j"

    def script(self) -> str:
        command = self._settings.agent_command or [sys.executable, "-P", "-m", "daggyr_agent"]
        return f"#!/bin/sh\nfolder={shlex.quote(str(self._folder))}\nset -- {shlex.join(command)}\n{_program()}"

    def write(
        self,
        address: str,
        access: PoolAccess,
        *,
        joined_as: str,
        resources: Mapping[str, int],
        pass_environment: Iterable[str],
    ) -> None:
        """Write all that pilots need. Raises OSError."""
        settings, folder = self._settings, self._folder
        folder.mkdir(mode=0o700, exist_ok=True)
        write_whole(folder / "coordinator", f"{address}\n".encode())
        # A log is a pilot's own and short, so it tells everything.
        lines = {"coordinator_file": str(folder / "coordinator"), "pool": joined_as, "log_level": "info"}
        if access.token is not None:
            lines["token_file"] = str(folder / "token")
            write_whole(folder / "token", f"{access.token}\n".encode())
        if settings.coordinator_ca is not None:
            lines["tls_ca"] = str(folder / "ca.pem")
            write_whole(folder / "ca.pem", settings.coordinator_ca.read_bytes())
        # Agents offer what the job was given and no more. Without `memory_mb`, no task that names memory comes here.
        offered = {"memory_mb": 0, **resources}
        text = "".join(f"{name} = {_toml(value)}\n" for name, value in lines.items())
        text += f"orphan_seconds = {settings.orphan_seconds:g}\n"
        text += "tls = true\n" if access.tls else ""
        text += "insecure = true\n" if access.insecure else ""
        text += f"pass_environment = [{', '.join(map(_toml, (*pass_environment, *_GIVEN_BY_SLURM)))}]\n"
        text += "[resource]\n" + "".join(f"{_toml(name)} = {units}\n" for name, units in offered.items())
        write_whole(folder / "agent.toml", text.encode())

    def last_words(self, job_id: str) -> str:
        """The last line that a pilot has logged; empty if there is none."""
        try:
            with (self._folder / f"{_LOG}{job_id}").open("rb") as file:
                file.seek(max(0, os.fstat(file.fileno()).st_size - _TAIL_BYTES))
                lines = file.read(_TAIL_BYTES).decode(errors="replace").split("\n")
        except OSError:
            return ""
        return next((line.strip()[:_MAX_SHOWN] for line in reversed(lines) if line.strip()), "")

    def clear_logs(self, there: Iterable[str]) -> None:
        """Remove the oldest logs of pilots that are not there any more."""
        kept = {f"{_LOG}{job_id}" for job_id in there}
        with contextlib.suppress(OSError):
            logs = [path for path in self._folder.glob(f"{_LOG}*") if path.name not in kept]
            for path in sorted(logs, key=lambda path: path.stat().st_mtime)[:-_MOST_LOGS]:
                path.unlink(missing_ok=True)

    def remove(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self._folder, ignore_errors=True)


@cache
def _program() -> str:
    return Path(__file__).with_name("pilot.sh").read_text(encoding="utf-8")


def _toml(text: str) -> str:
    """A TOML basic string. https://toml.io/en/v1.0.0#string"""
    return '"' + "".join(f"\\u{ord(c):04X}" if c in '"\\' or not c.isprintable() else c for c in text) + '"'
