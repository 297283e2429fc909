"""The agent's parts by themselves: batches, resources, control groups, and what a killed one left."""

from __future__ import annotations

import errno
import os
import secrets
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scripted_coordinator import LIFE, key
from support.task_specs import idents

from daggyr.attempts.kept import KEPT_BYTES
from daggyr.attempts.keys import ident_of
from daggyr.backoff import Backoff
from daggyr.bounds import MAX_NOTE_BYTES
from daggyr.checked import ConfigurationError
from daggyr.control_group import ControlGroup
from daggyr.v1.task_pb2 import (
    SUCCEEDED,
    AttemptResult,
    AttemptStarted,
)
from daggyr_agent.capture import Captures
from daggyr_agent.config import read_config
from daggyr_agent.connection import next_pause
from daggyr_agent.journal import Journal
from daggyr_agent.leftovers import end_leftovers
from daggyr_agent.outbox import MAX_BYTES, MAX_UNDER_WAY, MAX_UPDATES, Batch, Outbox
from daggyr_agent.resources import Ledger
from daggyr_agent.usage import PeakMemory, resident_peak


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    journal = Journal(tmp_path / "journal")
    journal.begin()
    yield journal
    journal.close()


@pytest.fixture
def called() -> list[str]:
    """What the outbox called, in order."""
    return []


@pytest.fixture
def box(journal: Journal, called: list[str]) -> Outbox:
    return Outbox(journal, lambda: called.append("added"), lambda: called.append("acknowledged"))


def finish(box: Outbox, number: int, *, ahead: int = 0, note: str = "") -> None:
    attempt = key(number)
    result = AttemptResult(outcome=SUCCEEDED, notes=[note] if note else [])
    box.finished(ident_of(attempt), attempt, result, ahead=ahead)


def told(batch: Batch | None) -> list[tuple[int, str | None]]:
    assert batch is not None
    updates = batch.message().updates.updates
    return [(update.key.task_number, update.WhichOneof("update")) for update in updates]


def test_start_is_not_told_when_the_result_is_in_the_same_batch(box: Outbox) -> None:
    for number in (1, 2):
        box.started(ident_of(key(number)), key(number), AttemptStarted())
    finish(box, 1)
    assert told(box.take(0)) == [(2, "started"), (1, "finished")]
    finish(box, 2)
    assert told(box.take(0)) == [(2, "finished")]


def test_results_gather_while_there_is_work_ahead(box: Outbox, called: list[str]) -> None:
    finish(box, 1, ahead=80)
    assert box.take(80) is None
    assert not called
    for number in range(2, 11):
        finish(box, number, ahead=80)
    assert called == ["added"]
    assert len(told(box.take(80))) == 10
    finish(box, 11, ahead=80)
    assert box.take(80) is None
    assert told(box.take(0)) == [(11, "finished")]


def test_a_start_takes_what_waits_with_it(box: Outbox, called: list[str]) -> None:
    finish(box, 1, ahead=1000)
    box.started(ident_of(key(2)), key(2), AttemptStarted())
    assert called
    assert told(box.take(1000)) == [(1, "finished"), (2, "started")]
    finish(box, 3, ahead=1000)
    assert box.take(1000) is None


def test_batches_are_bounded_and_numbered_and_stay_until_acknowledged(box: Outbox, called: list[str]) -> None:
    for number in range(MAX_UPDATES * 3):
        finish(box, number)
    batches = [box.take(0) for _ in range(4)]
    assert [batch and batch.sequence for batch in batches] == [1, 2, 3, None]
    assert all(len(told(batch)) == MAX_UPDATES for batch in batches[:3])
    assert box.under_way() == batches[:3]
    assert len(box.ended_keys()) == MAX_UPDATES * 3
    box.acknowledge(2)
    assert "acknowledged" in called
    assert box.first_unacknowledged == 3
    assert box.undelivered(ident_of(key(0))) is None
    assert box.undelivered(ident_of(key(MAX_UPDATES * 2))) is not None
    assert not box.empty
    box.acknowledge(3)
    assert box.empty and box.first_unacknowledged == 4


def test_no_more_batches_than_the_bound_are_under_way(box: Outbox) -> None:
    for number in range(MAX_UNDER_WAY):
        finish(box, number)
        assert box.take(0) is not None
    finish(box, MAX_UNDER_WAY)
    assert box.take(0) is None
    box.acknowledge(1)
    assert told(box.take(0)) == [(MAX_UNDER_WAY, "finished")]


def test_long_texts_are_cut_and_count_as_bytes_before_they_are_added(box: Outbox) -> None:
    for number in range(400):
        finish(box, number, note="\N{SNOWMAN}" * MAX_BYTES if number % 2 else "x" * MAX_BYTES)
    sizes, notes = [], []
    while (batch := box.take(0)) is not None:
        message = batch.message()
        sizes.append(message.ByteSize())
        notes += [note for update in message.updates.updates for note in update.finished.notes]
    assert len(notes) == 400
    assert max(len(note.encode()) for note in notes) <= MAX_NOTE_BYTES
    assert all(note.endswith(f"... ({(1 + 2 * (number % 2)) * MAX_BYTES:,} bytes in all)") for number, note in enumerate(notes))
    assert len(sizes) > 1 and max(sizes) < MAX_BYTES + 200 * MAX_UPDATES


def test_large_output_goes_in_several_messages_from_its_files(box: Outbox, tmp_path: Path) -> None:
    output = tmp_path / "output"
    output.mkdir()
    captures = Captures(output)
    for number in range(3):
        capture = captures.take(0)
        for stream in (capture.stdout, capture.stderr):
            with open(stream.path, "wb") as file:
                file.write(bytes([number]) * KEPT_BYTES)
        attempt = key(number)
        box.finished(ident_of(attempt), attempt, AttemptResult(), captures.keep(capture))
    full = box.take(1_000_000)
    assert full is not None  # although there is work ahead
    messages = [full.message()]
    while (batch := box.take(0)) is not None:
        messages.append(batch.message())
    updates = [update for message in messages for update in message.updates.updates]
    assert max(message.ByteSize() for message in messages) < 2 * MAX_BYTES
    for number in range(3):
        own = [update for update in updates if update.key.task_number == number]
        assert own[-1].HasField("finished")
        assert b"".join(update.output.data for update in own[:-1]) == bytes([number]) * 2 * KEPT_BYTES
    assert len(list(output.iterdir())) == 6
    box.acknowledge(messages[-1].updates.sequence)
    assert not list(output.iterdir())


def test_another_tracker_is_told_nothing_and_the_numbers_are_used_again(box: Outbox) -> None:
    box.belong_to("one", 1, life=7)
    for number in range(3):
        finish(box, number)
        box.take(0)
    finish(box, 3)
    box.acknowledge(1)
    box.belong_to("one", 2, life=7)
    assert not box.empty
    box.belong_to("two", 1, life=7)
    assert box.empty and not box.ended_keys()
    finish(box, 4)
    batch = box.take(0)
    assert batch is not None and batch.sequence == 2
    assert idents(update.key for update in batch.message().updates.updates) == {(1, 4, 1, LIFE)}


def test_session_may_begin_at_a_higher_number(box: Outbox) -> None:
    box.resume(7)
    finish(box, 1)
    batch = box.take(0)
    assert batch is not None and batch.sequence == 7
    box.resume(0)
    assert box.under_way() == [batch]


@given(st.lists(st.dictionaries(st.sampled_from("abc"), st.integers(1, 5)), max_size=20))
def test_ledger_never_gives_more_than_there_is(demands: list[dict[str, int]]) -> None:
    total = {"a": 4, "b": 9}
    ledger = Ledger(total)
    taken: list[dict[str, int]] = []
    for demand in demands:
        fits = all(units <= total.get(name, 0) - sum(other.get(name, 0) for other in taken) for name, units in demand.items())
        assert ledger.take(demand) == fits
        if fits:
            taken.append(demand)
        elif taken:
            ledger.give_back(taken.pop(0))
    assert (ledger.shortage({"a": 4, "b": 1})) is None
    assert ledger.shortage({"a": 5, "c": 1}) == "the task needs 5 of a where this agent has 4 and 1 of c where this agent has 0"


def group(tmp_path: Path, membership: str, files: dict[str, str]) -> ControlGroup:
    (tmp_path / "cgroup").write_text(membership)
    mount = tmp_path / "mount"
    mount.mkdir()
    for name, text in files.items():
        (mount / name).parent.mkdir(parents=True, exist_ok=True)
        (mount / name).write_text(text)
    return ControlGroup(tmp_path / "cgroup", mount)


def test_control_group_version_2(tmp_path: Path) -> None:
    files = {
        "cgroup.controllers": "memory",
        "a/b/memory.max": "max\n",
        "a/memory.max": "1048576\n",
        "a/b/memory.events": "low 0\nhigh 0\nmax 3\noom 2\noom_kill 5\n",
    }
    read = group(tmp_path, "0::/a/b\n", files)
    assert (read.memory_limit(), read.oom_kills()) == (1 << 20, 5)


def test_control_group_version_1_beside_an_empty_version_2(tmp_path: Path) -> None:
    files = {
        "memory/a/memory.limit_in_bytes": "9223372036854771712\n",
        "memory/memory.limit_in_bytes": "4096\n",
        "memory/a/memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 7\n",
        "unified/cgroup.procs": "",
    }
    read = group(tmp_path, "4:cpu,memory:/a\n1:cpuset:/\n0::/\n", files)
    assert (read.memory_limit(), read.oom_kills()) == (4096, 7)


def test_control_group_of_a_container_with_the_hosts_path(tmp_path: Path) -> None:
    read = group(tmp_path, "0::/docker/1234\n", {"cgroup.controllers": "", "memory.max": "5000\n"})
    assert read.memory_limit() == 5000


@pytest.mark.parametrize("membership", ["", "0::/\n", "nonsense\n", "0::/../../etc\n"])
def test_no_control_group_to_read(tmp_path: Path, membership: str) -> None:
    read = group(tmp_path, membership, {})
    assert (read.memory_limit(), read.oom_kills()) == (None, None)


def test_peak_memory_is_told_only_where_it_is_known() -> None:
    peaks = PeakMemory()
    own = resident_peak("self")
    assert own > 1 << 20
    assert peaks.of(own // 2, 0) is None
    assert peaks.of(own, 12345) == 12345
    assert peaks.of(10 * own, 12345) == 10 * own
    assert resident_peak(2**22 + 1) == 0


def test_the_pause_between_sessions_grows_while_they_come_to_nothing() -> None:
    """To 5 s at most; where the coordinator finds that the agent makes no sense, to a minute."""

    def pauses(count: int, lasted: float | None, refusal: grpc.StatusCode | None) -> list[float]:
        backoff = Backoff(0.1, 5.0)
        return [backoff.next(), *(next_pause(backoff, lasted=lasted, refusal=refusal) for _ in range(count))]

    gone, nonsense = grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.INVALID_ARGUMENT
    assert pauses(3, 10.0, None) == [0.1, 0.1, 0.1, 0.1]
    for lasted, refusal in ((None, None), (0.01, None), (None, grpc.StatusCode.PERMISSION_DENIED), (10.0, gone)):
        assert pauses(8, lasted, refusal)[-1] == 5.0
    assert pauses(12, 10.0, nonsense) == sorted(pauses(12, 10.0, nonsense))
    assert pauses(12, 10.0, nonsense)[-1] == 60.0


@pytest.mark.parametrize("units", ["9223372036854775807", "9" * 6_000, "1000000000000001", "-1", "1.5"])
def test_a_resource_without_sense_is_refused(units: str) -> None:
    with pytest.raises(ConfigurationError, match=r"--resource\.licences: expected a whole number"):
        read_config(["--coordinator", "127.0.0.1:1", "--resource", f"licences={units}"], {})
    assert read_config(["--coordinator", "127.0.0.1:1", "--resource", f"licences={10**15}"], {}).resources["licences"] == 10**15


@pytest.mark.parametrize("answer", [errno.ESRCH, errno.EINVAL, errno.ENOENT])
@pytest.mark.parametrize("call", [1, 2, 3])
def test_a_leftover_that_ends_while_it_is_looked_at(call: int, answer: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Linux 6.1 answers EINVAL where the leader of a session has ended whose other processes are still ending."""
    agent_id = secrets.token_hex(8)
    left = subprocess.Popen(["sleep", "600"], env={"DAGGYR_AGENT_ID": agent_id}, start_new_session=True)
    calls = 0
    real = os.pidfd_open

    def pidfd_open(pid: int, flags: int = 0) -> int:
        nonlocal calls
        calls += pid == left.pid
        if pid == left.pid and calls >= call:
            left.kill()
            left.wait()
            raise OSError(answer, os.strerror(answer))
        return real(pid, flags)

    monkeypatch.setattr(os, "pidfd_open", pidfd_open)
    end_leftovers(agent_id, {}, 60)
    assert left.wait() == -signal.SIGKILL
