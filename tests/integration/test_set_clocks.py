"""A real server and its agent on a host whose wall clock is set, forwards and back, while they wait and measure.

libfaketime gives them another wall clock, and leaves the clock that nobody sets as it is. Commands have the true one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import pytest
from support.deployment import Deployment, shell
from support.waiting import until

HOUR = 3_600
LIBRARIES = sorted(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"))

pytestmark = pytest.mark.skipif(not LIBRARIES, reason="there is no libfaketime here: it is in tests/packages.txt")


class Clock:
    """The wall clock of the daemons."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.set(0)

    def set(self, seconds: int) -> None:
        """It is so much ahead of the true one from now on, or behind."""
        whole = self._path.with_suffix(".new")
        whole.write_text(f"{seconds:+d}")
        whole.replace(self._path)


@pytest.fixture
def clock(deployment: Deployment) -> Iterator[Clock]:
    clock = Clock(deployment.folder / "clock")
    true = dict(deployment.environment)
    deployment.environment |= {
        "LD_PRELOAD": str(LIBRARIES[0]),
        "FAKETIME_TIMESTAMP_FILE": str(deployment.folder / "clock"),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        "FAKETIME_DISABLE_SHM": "1",
    }
    deployment.start_server("--tracker", f"sqlite:{deployment.folder}/state.db")
    deployment.environment = true
    yield clock


@pytest.mark.parametrize("hours", [-1, 1])
def test_a_retry_waits_as_long_as_it_says(deployment: Deployment, clock: Clock, hours: int) -> None:
    """The clock is set while it waits, and the true time comes back before it has run again."""
    flaky = shell('[ "$DAGGYR_ATTEMPT" = 2 ]', max_retries=1, retry_delay=2)
    run_id = deployment.submit({"flaky": flaky})
    until(lambda: "before retry 1 of 1" in deployment.why(run_id, "flaky"), "the delay")
    clock.set(hours * HOUR)
    deployment.watch(run_id)
    took = deployment.run(run_id)["ran_seconds"]
    assert 2 <= took < HOUR, "the delay counts, and the hour does not"
    clock.set(0)
    (last,) = deployment.daggyr("watch", str(run_id)).err.splitlines()[-1:]
    assert re.search(r" in [0-9.]+ (s|min)", last), last
    again = deployment.complete({"flaky": flaky})
    assert 2 <= again["ran_seconds"] < HOUR


@pytest.mark.parametrize("hours", [-1, 1])
def test_an_attempt_takes_what_it_takes(deployment: Deployment, clock: Clock, hours: int) -> None:
    """The clock is set while it runs."""
    gate = deployment.gate()
    run_id = deployment.submit({"a": shell(gate.hold)})
    gate.reached()
    clock.set(hours * HOUR)
    gate.open()
    deployment.watch(run_id)
    (attempt,) = deployment.task(run_id, "a")["attempts"]
    start, stop = (datetime.fromisoformat(attempt[name]) for name in ("start_time", "stop_time"))
    assert 0 < (stop - start).total_seconds() < HOUR
    assert 0 < deployment.run(run_id)["ran_seconds"] < HOUR
