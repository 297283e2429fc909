"""Copies of a tracker that is in use, brought back later as another life of it; and what a tracker's rows say of lives.

Steering takes the copies, and the verdict reads the rows once the coordinator has ended.
"""

from __future__ import annotations

import contextlib
import copy
import shutil
import sqlite3
import struct
import subprocess
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from support.deployment import BIN, Deployment
from support.postgres_server import PostgresServer, programs

from soaking.work import PlannedRun

Assigned = dict[tuple[int, int], dict[int, int]]  # by run and attempt, then by the task's number: the life that assigned it


@dataclass
class Copy:
    """A copy, and the runs as they were planned when it was made."""

    path: Path
    runs: dict[int, PlannedRun]
    life: int  # of the tracker that was copied, as the soak counts them


@dataclass
class Copies:
    """See above."""

    deployment: Deployment
    tracker: str
    postgres: PostgresServer | None
    made: list[Copy] = field(default_factory=list)
    count: int = 0

    def make(self, runs: dict[int, PlannedRun], life: int) -> None:
        """Copy the tracker, whether a coordinator uses it or not."""
        self.count += 1
        path = self.deployment.folder / f"copy-{self.count}"
        self._server("backup", str(path))
        self.made.append(Copy(path, copy.deepcopy(runs), life))

    def bring_back(self, made: Copy) -> dict[int, PlannedRun]:
        """Put a copy in the tracker's place, as another life. No coordinator runs. Returns the runs that are in it."""
        if self.postgres is None:
            path = Path(self.tracker.removeprefix("sqlite:"))
            for each in path.parent.glob(f"{path.name}*"):
                if not each.name.endswith("-lock"):
                    each.unlink()
            self._server("restore", str(made.path))
        else:
            name = urlsplit(self.tracker).path.removeprefix("/")
            self.postgres.execute(f"DROP DATABASE {name} WITH (FORCE)", f"CREATE DATABASE {name}")
            where = programs()
            assert where is not None
            self._ended([str(where / "pg_restore"), "--no-owner", "--exit-on-error", "--dbname", self.tracker, str(made.path)])
            self._server("restore")
        return copy.deepcopy(made.runs)

    def assigned(self) -> Assigned:
        """Return which life assigned each attempt. No coordinator runs."""
        found: Assigned = defaultdict(dict)
        for run_id, numbers, attempts, life in self._rows():
            for number, attempt in zip(_unpacked(numbers), _unpacked(attempts), strict=True):
                found[run_id, attempt][number] = life
        return found

    def _rows(self) -> Iterable[tuple[Any, ...]]:
        question = "SELECT run_id, number_list, attempt_list, life FROM {}assignment ORDER BY id"
        if self.postgres is not None:
            name = urlsplit(self.tracker).path.removeprefix("/")
            return self.postgres.execute(question.format("daggyr."), database=name)
        aside = self.deployment.folder / "read"
        aside.mkdir(exist_ok=True)
        path = Path(self.tracker.removeprefix("sqlite:"))
        for each in path.parent.glob(f"{path.name}*"):
            shutil.copy(each, aside)
        with contextlib.closing(sqlite3.connect(aside / path.name)) as connection:
            return connection.execute(question.format("")).fetchall()

    def _server(self, *arguments: str) -> None:
        self._ended([str(BIN / "daggyr-server"), *arguments, "--tracker", self.tracker])

    def _ended(self, command: list[str]) -> None:
        deployment = self.deployment
        ended = subprocess.run(
            command, cwd=deployment.work, env=deployment.environment, stdin=subprocess.DEVNULL, capture_output=True, text=True
        )
        assert ended.returncode == 0 and "Traceback" not in ended.stderr, f"{command}: {ended.stdout}{ended.stderr}"


def _unpacked(packed: bytes) -> tuple[int, ...]:
    return struct.unpack(f"<{len(packed) // 4}I", packed)
