"""A tracker that holds values that no version takes any more: every reader answers, and JSON stays JSON."""

from __future__ import annotations

import asyncio
import math
from pathlib import Path
from typing import Any

from support.deployment import Deployment
from test_agents_words import strict

from daggyr.v1.task_pb2 import AttemptResult
from daggyr_server.core.records import AttemptRecorded, RunAdded, RunMoved
from daggyr_server.core.states import Outcome, State
from daggyr_server.trackers.sql.sqlite.tracker import SqliteTracker

YEAR = 31_556_952  # seconds
ODD: tuple[dict[str, Any], ...] = (
    {"outcome": 99, "exit_code": -(2**31), "signal": 2**31 - 1},
    {"outcome": 2, "cpu_seconds": math.nan, "max_rss_bytes": 2**64 - 1},
    {"outcome": 2, "cpu_seconds": math.inf, "start_time": {"seconds": 10**11 * YEAR}, "stop_time": {"seconds": -(10**11) * YEAR}},
    {
        "outcome": 2,
        "cpu_seconds": -math.inf,
        "start_time": {"seconds": 5, "nanos": -1},
        "stop_time": {"seconds": 253_402_300_799},
    },
    {"outcome": 2, "stdout": {"size_bytes": 2**64 - 1}, "stderr": {"cut_offset": 2**64 - 1, "cut_bytes": 2**64 - 1}},
    {"outcome": 2, "notes": ["\x1b[31m" + "x" * 500_000]},
)


async def _fill(path: Path) -> None:
    tracker = SqliteTracker(f"sqlite:{path}")
    await tracker.open()
    document = (
        b'{"tasks": {' + b",".join(b'"t%d": {"details": {"command": ["true"]}}' % number for number in range(len(ODD))) + b"}}"
    )
    await tracker.commit([RunAdded(1, "", {}, "default", 1_700_000_000.0, document)])
    await tracker.commit([RunMoved(1, State.RUNNING, 1_700_000_000.0)])
    ended = [
        AttemptRecorded(1, number, 1, Outcome.FAILED, "h1", "one", 1_700_000_000.0, AttemptResult(**fields), State.ERRORED)
        for number, fields in enumerate(ODD)
    ]
    await tracker.commit([*ended, RunMoved(1, State.ERRORED, 1_700_000_001.0, {State.ERRORED: len(ODD)})])
    await tracker.close()


COMMANDS = (
    ("runs",),
    ("show", "1"),
    ("tasks", "1"),
    ("logs", "1"),
    *(("task", "1", f"t{number}") for number in range(len(ODD))),
)


def test_rows_of_old_trackers_break_no_reader(deployment: Deployment, tmp_path: Path) -> None:
    """Whether a time can be shown depends on the time zone of the command that shows it. JSON has times in UTC."""
    asyncio.run(_fill(tmp_path / "state.db"))
    deployment.environment["TZ"] = "Pacific/Kiritimati"
    deployment.start_server("--tracker", f"sqlite:{tmp_path}/state.db", "--workers", "1")
    for command in COMMANDS:
        for zone in ("UTC", "Pacific/Kiritimati"):
            told = deployment.daggyr(*command, TZ=zone)
            assert told.code == 0 and "Traceback" not in told.err, (command, zone, told.err)
        if command[0] != "logs":
            strict(deployment.daggyr(*command, "--output", "json").out)
    for number in range(len(ODD)):
        assert deployment.why(1, f"t{number}")
    (attempt,) = deployment.task(1, "t1")["attempts"]
    assert (attempt["outcome"], attempt["cpu_seconds"], attempt["max_rss_bytes"]) == ("FAILED", None, None)
    assert [note.split()[0] for note in attempt["executor"]] == ["cpu_seconds", "max_rss_bytes"]
    deployment.watch(1, code=1)
