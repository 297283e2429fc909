"""How the command line writes values (times, sizes, counts), and what it takes arguments to mean. No program is started."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta

import click
import pytest

from daggyr.v1.run_pb2 import RunSummary, State
from daggyr_server.cli import names, words
from daggyr_server.cli.options import EXPLICIT_RUN, RUN, TAG, WHEN
from daggyr_server.cli.progress import PlainView


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-1, "0 ms"),
        (0.0124, "12 ms"),
        (1.24, "1.2 s"),
        (59.94, "59.9 s"),
        (59.99, "1 min 0 s"),
        (245, "4 min 5 s"),
        (3599.9, "1 h 0 min"),
        (11_100, "3 h 5 min"),
        (183_600, "2 d 3 h"),
    ],
)
def test_span(seconds: float, text: str) -> None:
    assert words.span(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (3 * 1024**2, "3.0 MiB"), (2**60, "1048576.0 TiB")]
)
def test_size(count: int, text: str) -> None:
    assert words.size(count) == text


def test_text_cannot_steer_the_terminal() -> None:
    assert words.printable("a\x1b[2J\nb\x9bé") == "a\\x1b[2J\\x0ab\\x9bé"


def test_counts_hold_only_states_that_occur_and_leave_the_run_alone() -> None:
    run = RunSummary(task_states={"ERRORED": 1, "COMPLETED": 1234, "RUNNING": 0})
    assert words.counts(run) == "1,234 COMPLETED, 1 ERRORED"
    assert words.ended(run) == 1235
    assert words.total(run) == 1235
    assert dict(run.task_states) == {"ERRORED": 1, "COMPLETED": 1234, "RUNNING": 0}


@pytest.mark.parametrize(
    ("state", "ran", "passed", "text"),
    [
        (State.STATE_QUEUED, 0.0, 9.0, "-"),
        (State.STATE_QUEUED, 3.0, 9.0, "3.0 s"),
        (State.STATE_RUNNING, 3.0, 9.0, "12.0 s"),
        (State.STATE_COMPLETED, 3.0, 9.0, "3.0 s"),
        (State.STATE_KILLED, 0.0, 9.0, "0 ms"),
    ],
)
def test_a_run_took_what_the_server_says(state: State, ran: float, passed: float, text: str) -> None:
    """And goes on from there while it is RUNNING, whatever this host's clock or the times of the run say."""
    run = RunSummary(state=state, ran_seconds=ran)
    run.start_time.FromJsonString("2099-01-01T00:00:00Z")
    run.stop_time.FromJsonString("2001-01-01T00:00:00Z")
    assert words.took(run, passed) == text


def test_a_server_that_is_older_tells_only_of_runs_that_have_ended() -> None:
    run = RunSummary(state=State.STATE_RUNNING)
    run.start_time.FromJsonString("2026-01-01T00:00:00Z")
    assert words.took(run) == "-"
    run.stop_time.FromJsonString("2026-01-01T00:00:07Z")
    assert words.took(run) == "7.0 s"


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ("It waits until 2026-11-27 11:25:04 UTC.", "It waits until 2026-11-27 06:25:04."),
        ("2026-11-27 11:25:04 UTC and 2026-07-01 00:00:00 UTC", "2026-11-27 06:25:04 and 2026-06-30 20:00:00"),
        ("2026-13-01 00:00:00 UTC, 2026-11-27 11:25:04 UTC+1 and x2026-11-27 11:25:04 UTC", None),
        ("a\x1bb", "a\\x1bb"),
    ],
)
def test_what_a_server_says_has_local_times(monkeypatch: pytest.MonkeyPatch, told: str, said: str | None) -> None:
    """As the tables have; so two times on one screen can be compared."""
    with monkeypatch.context() as patch:
        patch.setenv("TZ", "America/New_York")
        time.tzset()
        try:
            assert words.said(told) == (told if said is None else said)
        finally:
            patch.undo()
            time.tzset()


def test_names_have_no_prefix_and_new_numbers_stay_numbers() -> None:
    assert (names.state(3), names.task_type(1), names.agent_state(2)) == ("COMPLETED", "COMMAND", "DRAINING")
    assert names.outcome(99) == "99"


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2026-01-31T09:00:00Z", datetime(2026, 1, 31, 9, tzinfo=UTC)),
        ("2026-01-31T09:00:00.5+02:00", datetime(2026, 1, 31, 7, 0, 0, 500_000, tzinfo=UTC)),
        ("2026-01-31", datetime(2026, 1, 31).astimezone(UTC)),
    ],
)
def test_a_time(text: str, moment: datetime) -> None:
    assert WHEN.convert(text, None, None).ToDatetime(tzinfo=UTC) == moment


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("30m", 1800), ("2h", 7200), ("3d", 259_200), ("1w", 604_800)])
def test_so_long_ago(text: str, seconds: int) -> None:
    before = datetime.now(UTC)
    moment = WHEN.convert(text, None, None).ToDatetime(tzinfo=UTC) + timedelta(seconds=seconds)
    assert before - timedelta(milliseconds=1) <= moment <= datetime.now(UTC)


@pytest.mark.parametrize("text", ["yesterday", "2h ago", "2026-13-01", "", "999999999w", "-3d", "0001-01-01T00:00:00+14:00"])
def test_no_time(text: str) -> None:
    with pytest.raises(click.BadParameter, match="is no time"):
        WHEN.convert(text, None, None)


def test_a_run_is_a_number_or_last() -> None:
    assert RUN.convert("last", None, None) == 0
    assert RUN.convert("12", None, None) == 12
    for text in ("0", "-1", "LAST", "1.5", "9" * 20, "²"):
        with pytest.raises(click.BadParameter, match="is no run"):
            RUN.convert(text, None, None)


def test_where_a_run_must_be_named_last_is_none() -> None:
    assert EXPLICIT_RUN.convert("12", None, None) == 12
    for text in ("last", "0", "-1"):
        with pytest.raises(click.BadParameter, match="give the run's number"):
            EXPLICIT_RUN.convert(text, None, None)


def test_a_tag_is_split_at_its_first_equals_sign() -> None:
    assert TAG.convert("k=v=w", None, None) == ("k", "v=w")
    assert TAG.convert("k=", None, None) == ("k", "")
    for text in ("k", "=v", ""):
        with pytest.raises(click.BadParameter, match="KEY=VALUE"):
            TAG.convert(text, None, None)


def test_plain_progress_is_a_line_every_five_seconds_if_something_changed() -> None:
    now = 0.0
    said: list[str] = []
    view = PlainView(said.append, lambda: now)

    def run(completed: int) -> RunSummary:
        return RunSummary(run_id=1, state=State.STATE_RUNNING, task_states={"COMPLETED": completed, "QUEUED": 9 - completed})

    view.update(run(0), [])
    now = 6.0
    view.tick()
    assert said == []
    view.update(run(1), [])
    view.tick()
    view.update(run(2), [])
    now = 10.9
    view.tick()
    assert said == ["run 1 RUNNING: 1 of 9 tasks ended (8 QUEUED, 1 COMPLETED)"]
    now = 11.0
    view.tick()
    assert said[1:] == ["run 1 RUNNING: 2 of 9 tasks ended (7 QUEUED, 2 COMPLETED)"]
    now = 60.0
    view.tick()
    assert len(said) == 2
