"""How a tracker begins and ends: its identity, epochs, run ids, addresses, and what outlives it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from tracker_kinds import IN_VAIN, KINDS, OpenAgain, TrackerKind
from tracker_records import assigned, kept, recorded, run_added, whole

from daggyr_server.core.records import AttemptsAssigned, RunMoved, TasksGenerated, TasksMoved
from daggyr_server.core.states import State
from daggyr_server.trackers.base import Tracker, TrackerError
from daggyr_server.trackers.loader import make_tracker


async def test_a_new_tracker_has_seen_nothing(kind: TrackerKind, open_again: OpenAgain) -> None:
    _, opened = await open_again()
    assert opened.tracker_id and opened.tracker_id.isprintable()
    assert opened.epoch >= 1
    assert opened.next_run_id >= 1
    assert opened.durable is kind.durable


async def test_OpenCommitCloseOpen(kind: TrackerKind, open_again: OpenAgain) -> None:
    first, before = await open_again()
    await first.commit([run_added(before.next_run_id, b"spec"), run_added(before.next_run_id + 6)])
    await first.commit([recorded(run_id=before.next_run_id), kept(3, b"abc", run_id=before.next_run_id)])
    await first.close()
    second, after = await open_again()
    if kind.durable:
        assert after.tracker_id == before.tracker_id
        assert after.epoch > before.epoch
        assert after.next_run_id > before.next_run_id + 6
        assert await second.document(before.next_run_id) == b"spec"
        assert len(await second.attempts(before.next_run_id, 0)) == 1
        assert await whole(second, run_id=before.next_run_id) == [(3, b"abc")]
    else:
        assert after.tracker_id != before.tracker_id, "agents would believe that their attempts are known here"
        assert await second.document(before.next_run_id) is None
        assert await second.attempts(before.next_run_id, 0) == []
        assert await whole(second, run_id=before.next_run_id) == []


async def test_each_start_has_a_life_of_its_own_and_attempts_have_their_starts(kind: TrackerKind, open_again: OpenAgain) -> None:
    first, before = await open_again()
    assert 0 < before.life < 2**63 and before.lives[before.epoch] == before.life
    await first.commit([run_added(1), RunMoved(1, State.RUNNING, 1.0), assigned(0, 1)])
    assert await lives_of(first) == [before.life] * 2
    await first.close()
    second, after = await open_again()
    assert after.life != before.life and after.lives[after.epoch] == after.life
    if not kind.durable:
        return
    assert after.lives[before.epoch] == before.life
    await second.commit([assigned(2), assigned(3, host="h2")])
    assert await lives_of(second) == [before.life] * 2 + [after.life] * 2


async def lives_of(tracker: Tracker) -> list[int]:
    stored = await tracker.load(1)
    assert stored is not None
    return [sent.life for sent in stored.in_flight]


async def test_a_second_coordinator_fences_the_first_or_is_refused(kind: TrackerKind, open_again: OpenAgain) -> None:
    first, before = await open_again()
    await first.commit([run_added(1)])
    try:
        _, after = await open_again(wait=IN_VAIN)
    except TrackerError:
        await first.commit([run_added(2)])  # the first tracker goes on undisturbed
        assert await first.document(2) == b"{}"
        return
    assert (after.tracker_id, after.epoch) != (before.tracker_id, before.epoch)
    if kind.durable:
        with pytest.raises(TrackerError):
            await first.commit([run_added(2)])


async def test_closing_twice_is_safe(tracker: Tracker) -> None:
    await tracker.commit([run_added()])
    await tracker.close()
    await tracker.close()


async def test_closing_before_opening_is_safe(kind: TrackerKind, tmp_path: Path) -> None:
    await kind.make(kind.address(tmp_path)).close()


@pytest.mark.parametrize(
    ("kind", "address"),
    [pytest.param(kind, address, id=address) for kind in KINDS for address in kind.bad_addresses],
)
def test_a_malformed_address_is_refused_with_what_to_write(kind: TrackerKind, address: str) -> None:
    with pytest.raises(TrackerError, match=re.escape(kind.name)) as raised:
        kind.make(address)
    assert "write" in str(raised.value)


def test_an_unknown_kind_is_refused_and_its_secret_not_shown() -> None:
    with pytest.raises(TrackerError, match=r"no tracker 'redis'; there are: .*memory") as raised:
        make_tracker("redis://user:password@host")
    assert "password" not in str(raised.value)


async def test_every_kind_of_record_is_taken(tracker: Tracker) -> None:
    await tracker.commit(
        [
            run_added(1),
            RunMoved(run_id=1, state=State.RUNNING, time=1.0),
            AttemptsAssigned(run_id=1, host="h1", host_name="one", numbers=[0, 1], attempts=[1, 1], time=1.0),
            recorded(number=0),
            TasksGenerated(run_id=1, number=0, attempt=1, revision=2),
            TasksMoved(run_id=1, numbers=[1], attempts=[1], state=State.KILLED, reason="kill", time=2.0),
            kept(0, b"a", number=1),
            RunMoved(run_id=1, state=State.KILLED, time=3.0),
        ]
    )
    assert len(await tracker.attempts(1, 0)) == 1
    assert await whole(tracker, number=1) == [(0, b"a")]


async def test_a_commit_of_nothing_changes_nothing(tracker: Tracker) -> None:
    await tracker.commit([])
    await tracker.commit([run_added(1, b"spec")])
    await tracker.commit([])
    assert await tracker.document(1) == b"spec"


async def test_documents_come_back_as_they_were(tracker: Tracker) -> None:
    documents = {1: b"", 2: b"\x00\xff not UTF-8", 3: b"x" * 3_000_000}
    await tracker.commit([run_added(run_id, document) for run_id, document in documents.items()])
    assert {run_id: await tracker.document(run_id) for run_id in documents} == documents
    assert await tracker.document(4) is None
