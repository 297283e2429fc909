"""The ladder of outcomes: each line has a case, and the lines decide in the order of the docstring."""

from __future__ import annotations

import ast
import inspect
import itertools
import re
import signal
import sys
import textwrap
import time
from types import FrameType
from typing import Any

import pytest

from daggyr.attempts.outcome import (
    EXITED_0,
    OVER_NOTE,
    STOPPED_NOTE,
    Cause,
    Scheduler,
    Seen,
    judge,
    result_of,
    signal_in,
    signal_name,
    without_process,
)
from daggyr.v1.task_pb2 import KILLED, RETURNED, AttemptOutcome

KILL = int(signal.SIGKILL)

# For each line of the docstring, in its order: what is seen at the least; then the outcome, and words of its note.
LINES: list[tuple[dict[str, Any], str, str]] = [
    ({"rejected": "no such program: x"}, "REJECTED", "no such program: x"),
    ({"unkept": "the disk is full"}, "RETURNED", "the disk is full"),
    ({"exit_code": 0}, "SUCCEEDED", ""),
    ({"cause": Cause.KILL}, "KILLED", ""),
    ({"cause": Cause.TIMEOUT, "timeout": 1.5}, "TIMED_OUT", "timeout of 1.5 s"),
    ({"cause": Cause.STOP}, "LOST", STOPPED_NOTE),
    ({"cause": Cause.OVER}, "LOST", OVER_NOTE),
    ({"scheduler": Scheduler.CANCELLED, "scheduler_words": "by an operator"}, "KILLED", "by an operator"),
    ({"host_fault": "no processes are left"}, "RETURNED", "no processes are left"),
    ({"vanished": "its node has no clock"}, "LOST", "its node has no clock"),
    ({"signal": KILL, "oom_kills": 1}, "OOM_KILLED", "OOM killer"),
    ({"signal": KILL}, "FAILED", "another process, or the kernel"),
    ({"signal": KILL, "oom_kills": 0}, "FAILED", "another process"),
    ({"signal": int(signal.SIGSEGV)}, "FAILED", "SIGSEGV"),
    ({"exit_code": 1}, "FAILED", ""),
]

# What else is to be told apart within a line.
MORE: list[tuple[dict[str, Any], str, str]] = [
    ({"exit_code": 0, "cause": Cause.TIMEOUT, "timeout": 1234567.5}, "SUCCEEDED", "timeout of 1234567.5 s"),
    *(({"exit_code": 0, "cause": cause}, "SUCCEEDED", "") for cause in Cause if cause is not Cause.TIMEOUT),
    ({"exit_code": 0, "unkept": "the disk is full"}, "RETURNED", "the disk is full"),
    ({"exit_code": 1, "host_fault": "the disk is full"}, "RETURNED", "the disk is full"),
    ({"exit_code": 0, "host_fault": "the disk is full"}, "SUCCEEDED", ""),
    ({"exit_code": 143, "cause": Cause.KILL}, "KILLED", ""),
    ({"signal": KILL, "cause": Cause.KILL, "oom_kills": 1}, "KILLED", ""),
    ({"signal": KILL, "cause": Cause.TIMEOUT}, "TIMED_OUT", "timeout"),
    ({"exit_code": 1, "cause": Cause.STOP}, "LOST", STOPPED_NOTE),
    ({"exit_code": 1, "cause": Cause.OVER}, "LOST", OVER_NOTE),
    ({"signal": int(signal.SIGTERM), "oom_kills": 1}, "FAILED", "SIGTERM"),
    ({"signal": 40}, "FAILED", "signal 40"),
    ({"scheduler": Scheduler.TIME_LIMIT, "scheduler_words": "its limit"}, "TIMED_OUT", "its limit"),
    ({"scheduler": Scheduler.OUT_OF_MEMORY, "scheduler_words": "its memory"}, "OOM_KILLED", "its memory"),
    ({"scheduler": Scheduler.TAKEN_AWAY, "scheduler_words": "preempted"}, "LOST", "preempted"),
    ({"scheduler": Scheduler.UNEXPLAINED, "scheduler_words": "who knows"}, "LOST", "who knows"),
]


def judged(seen: dict[str, Any]) -> tuple[str, list[str]]:
    outcome, notes = judge(Seen(**seen))
    return AttemptOutcome.Name(outcome), notes


@pytest.mark.parametrize(("seen", "outcome", "words"), [*LINES, *MORE])
def test_what_an_end_means(seen: dict[str, Any], outcome: str, words: str) -> None:
    found, notes = judged(seen)
    assert found == outcome
    assert words in " ".join(notes)
    assert bool(words) == bool(notes)


@pytest.mark.parametrize(("above", "below"), [*itertools.combinations([seen for seen, _, _ in LINES], 2)])
def test_the_line_above_decides(above: dict[str, Any], below: dict[str, Any]) -> None:
    """Wherever two lines fit, the one that stands above counts."""
    # That a task exited with 0 counts only where no scheduler had ended it.
    above = {"scheduler": None, **above} if "exit_code" in above and "signal" not in above else above
    if all(above[name] == below[name] for name in above.keys() & below.keys()) and not below.items() <= above.items():
        assert judged({**below, **above})[0] == judged(above)[0]


def test_the_docstring_has_the_lines_in_their_order() -> None:
    told = re.findall(r"^ *(\d+)\. (.*)$", inspect.getdoc(judge) or "", re.MULTILINE)
    assert [int(number) for number, _ in told] == list(range(1, len(LINES) + 1))
    for (_, sentence), (_, outcome, _) in zip(told, LINES, strict=True):
        assert outcome in sentence


def test_every_line_has_a_case() -> None:
    """Each `return` of the ladder is reached by a case above, and each word of a scheduler's is one of them."""
    source, first = inspect.getsourcelines(judge)
    body = ast.parse(textwrap.dedent("".join(source)))
    returns = {first + node.lineno - 1 for node in ast.walk(body) if isinstance(node, ast.Return)}
    reached: set[int] = set()

    def trace(frame: FrameType, event: str, argument: object) -> Any:
        if frame.f_code is judge.__code__:
            reached.add(frame.f_lineno)
            return trace
        return None

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        for seen, _, _ in [*LINES, *MORE]:
            judge(Seen(**seen))
    finally:
        sys.settrace(before)
    assert returns - reached == set()
    assert {seen["scheduler"] for seen, _, _ in [*LINES, *MORE] if "scheduler" in seen} == set(Scheduler)
    assert {seen["cause"] for seen, _, _ in LINES if "cause" in seen} == set(Cause)


def test_a_result_has_what_was_seen() -> None:
    result = result_of(Seen(signal=15, cause=Cause.KILL), start_ns=1_500_000_000, stop_ns=2_000_000_001, cpu_seconds=0.5)
    assert (result.outcome, result.signal, result.HasField("exit_code"), result.cpu_seconds) == (KILLED, 15, False, 0.5)
    assert (result.start_time.ToNanoseconds(), result.stop_time.ToNanoseconds()) == (1_500_000_000, 2_000_000_001)
    assert result_of(EXITED_0).exit_code == 0
    assert not result_of(EXITED_0).HasField("start_time")


def test_an_attempt_does_not_stop_before_it_started() -> None:
    """Its host's clock may have been set back since."""
    tomorrow = time.time_ns() + 86_400 * 10**9
    result = result_of(Seen(vanished="nobody knows"), start_ns=tomorrow)
    assert result.start_time == result.stop_time
    now = result_of(Seen(vanished="nobody knows"), start_ns=1)
    assert time.time_ns() - 60 * 10**9 < now.stop_time.ToNanoseconds() < tomorrow


def test_what_never_ran_has_no_process() -> None:
    rejected = result_of(Seen(rejected="no", exit_code=126), start_ns=1, cpu_seconds=0.0)
    assert list(rejected.notes) == ["no"]
    returned = without_process(RETURNED)
    assert (returned.outcome, list(returned.notes)) == (RETURNED, [])
    at_fault = result_of(Seen(host_fault="no room"), start_ns=1, cpu_seconds=0.0)
    assert (at_fault.outcome, list(at_fault.notes)) == (RETURNED, ["no room"])
    for result in (rejected, returned, at_fault):
        assert not any(map(result.HasField, ("exit_code", "signal", "start_time", "cpu_seconds")))
        assert result.stop_time.seconds > 0


def test_signals_have_their_names() -> None:
    assert [signal_name(number) for number in (1, 9, 40)] == ["SIGHUP", "SIGKILL", "signal 40"]


def test_the_signal_in_a_shells_status() -> None:
    assert [signal_in(status) for status in (0, 1, 127, 128, 129, 143, 192, 193, 255)] == [*[None] * 4, 1, 15, 64, None, None]
