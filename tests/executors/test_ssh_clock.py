"""When an attempt on an SSH target started and stopped, if this host's wall clock is set meanwhile. Nothing is started."""

from __future__ import annotations

import time

import pytest

from daggyr_server.executors.ssh.clock import TargetClock
from daggyr_server.executors.ssh.script import Ended

SECOND = 1_000_000_000
BOOT = "a boot"


class Clocks:
    """This host's clocks, in place of the real ones."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.steady, self.ahead = 5_000 * SECOND, 1_700_000_000 * SECOND
        patch.setattr(time, "monotonic_ns", lambda: self.steady)
        patch.setattr(time, "time_ns", lambda: self.steady + self.ahead)


@pytest.fixture
def clocks(monkeypatch: pytest.MonkeyPatch) -> Clocks:
    return Clocks(monkeypatch)


def ended(began: int, stopped: int, boot: str = BOOT) -> Ended:
    """What a target tells of an attempt, by its uptime in centiseconds."""
    return Ended(
        status=0, by_signal=False, streams=(), refused=False, gone=False, full=False, whole=False, cause="", limit=0.0,
        began=began, ended=stopped, cpu_seconds=None, boot=boot,
    )  # fmt: skip


@pytest.mark.parametrize("jump", [0, -3_600 * SECOND, 3_600 * SECOND])
@pytest.mark.parametrize("adopted", [False, True])
@pytest.mark.parametrize("boot", [BOOT, "another boot"])
def test_an_attempt_took_what_its_target_measured(clocks: Clocks, jump: int, adopted: bool, boot: str) -> None:
    clock = TargetClock("100.00", BOOT)
    sent = None if adopted else clocks.steady
    clocks.steady += SECOND
    clocks.ahead += jump
    start = clock.start_ns("101.00", sent)
    assert start == clocks.steady + clocks.ahead
    clocks.steady += 7 * SECOND
    clocks.ahead += jump
    span = clock.span_ns(ended(10_100, 10_700, boot), sent)
    assert span[1] - span[0] == 6 * SECOND
    now = clocks.steady + clocks.ahead
    assert span[1] == (now - SECOND if boot == BOOT else now)


def test_an_attempt_started_after_it_was_sent(clocks: Clocks) -> None:
    """However late the line came from which the time of the target's boot is known."""
    clock = TargetClock("100.00", BOOT)
    clocks.steady += 2 * SECOND
    start, stop = clock.span_ns(ended(10_050, 10_150), clocks.steady - SECOND)
    assert (start, stop) == (clocks.steady + clocks.ahead - SECOND, clocks.steady + clocks.ahead)
