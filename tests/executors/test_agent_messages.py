"""Tasks that are too large for a message: an agent pool ends their attempts, and the session goes on."""

from __future__ import annotations

import grpc
from agent_by_hand import hello
from agent_wire import Wire
from support.task_specs import ident, idents, spec

from daggyr.channel import MAX_MESSAGE_BYTES
from daggyr.v1.agents_pb2 import CoordinatorMessage
from daggyr.v1.task_pb2 import HOST_PAUSED, REJECTED, Assignment, AssignmentBatch, AttemptKey, TaskSpec, TaskTemplate
from daggyr_server.executors.agents.portions import MAX_BATCH_BYTES, portions
from daggyr_server.executors.believable import MAX_HELD

HOST = "agent-1"


def large(size: int) -> TaskSpec:
    return TaskSpec(command=["/bin/true"], stdin="x" * size)


def batch_of(run_id: int, size: int) -> AssignmentBatch:
    """Return a batch of one assignment whose message has this many bytes."""

    def made(stdin: int) -> AssignmentBatch:
        key = AttemptKey(run_id=run_id, task_number=1, attempt=1)
        return AssignmentBatch(
            templates=[TaskTemplate(spec=large(stdin))], assignments=[Assignment(key=key, task_id="task", template=0)]
        )

    rest = CoordinatorMessage(assign=made(size)).ByteSize() - size
    batch = made(size - rest)
    assert CoordinatorMessage(assign=batch).ByteSize() == size
    return batch


async def test_a_message_at_exactly_the_limit_is_carried_and_one_byte_more_is_rejected(wire: Wire) -> None:
    agent = await wire.joined()
    (fits,) = wire.pool.start(HOST, batch_of(1_000_001, MAX_MESSAGE_BYTES))
    (beyond,) = wire.pool.start(HOST, batch_of(1_000_002, MAX_MESSAGE_BYTES + 1))
    heard = await agent.hears("assign")
    assert [ident(assignment.key) for assignment in heard.assignments] == [ident(fits)]
    told = wire.pool.reports.of(beyond)
    assert told.result.outcome == REJECTED
    assert f"{MAX_BATCH_BYTES + 1:,} bytes" in told.notes and f"{MAX_BATCH_BYTES:,}" in told.notes
    assert wire.pool.reports.of(fits).results == []
    (after,) = wire.pool.start(HOST, wire.pool.batch(spec("/bin/true")))
    assert ident((await agent.hears("assign")).assignments[0].key) == ident(after)


async def test_tasks_that_fit_one_by_one_are_sent_one_by_one(wire: Wire) -> None:
    agent = await wire.joined()
    sizes = [900_000, 3_600_000, 10, 2_500_000, 5_000_000, 2_500_000, 20]
    keys = wire.pool.start(HOST, wire.pool.batch(*map(large, sizes)))
    heard: dict[tuple[int, int, int], int] = {}
    while len(heard) < len(sizes) - 1:
        message = await agent.hears("assign")
        for assignment in message.assignments:
            heard[ident(assignment.key)] = len(message.templates[assignment.template].spec.stdin)
    assert list(heard.items()) == [(ident(key), size) for key, size in zip(keys, sizes, strict=True) if size < 4_000_000]
    assert wire.pool.reports.of(keys[4]).result.outcome == REJECTED


async def test_what_an_agent_never_got_comes_again_in_messages_that_fit(wire: Wire) -> None:
    agent = await wire.joined()
    await wire.pool.reports.until(wire.pool.available)
    agent.cut()
    hosts = wire.pool.reports.hosts
    await wire.pool.reports.until(lambda: hosts[HOST].state == HOST_PAUSED)
    keys = wire.pool.start(HOST, wire.pool.batch(*map(large, [2_000_000, 3_000_000, 4_500_000])))
    assert wire.pool.reports.of(keys[2]).result.outcome == REJECTED  # no session could carry it
    agent = await wire.joined()
    again = [ident(assignment.key) for _ in range(2) for assignment in (await agent.hears("assign")).assignments]
    assert again == list(map(ident, keys[:2]))


def test_parts_have_their_own_templates_only() -> None:
    shared = AssignmentBatch(templates=[TaskTemplate(spec=large(3_000_000)), TaskTemplate(spec=large(2_000_000))])
    for number in range(5):
        shared.assignments.add(key=AttemptKey(run_id=1, task_number=number, attempt=1), template=number % 2)
    parts = list(portions(shared))
    assert all(size == part.ByteSize() <= MAX_BATCH_BYTES for part, size in parts)
    assert [
        (assignment.key.task_number, len(part.templates[assignment.template].spec.stdin))
        for part, _ in parts
        for assignment in part.assignments
    ] == [(number, (3_000_000, 2_000_000)[number % 2]) for number in range(5)]


async def test_an_agent_that_holds_very_many_attempts_is_told_to_end_them_all(wire: Wire) -> None:
    """The keys have the largest numbers. An agent may hold no more of them, because a welcome could not name more."""
    held = [AttemptKey(run_id=2**62 - 1, task_number=2**32 - 1 - number, attempt=2**32 - 1) for number in range(MAX_HELD)]
    agent = await wire.hand()
    welcome = await agent.joins(tracker_id="tracker-1", epoch=1, held=held)
    assert idents(welcome.end) == idents(held)
    agent = await wire.hand()
    await agent.say(hello=hello(tracker_id="tracker-1", epoch=1, held=[*held, AttemptKey(run_id=1, task_number=1, attempt=1)]))
    code, words = await agent.status()
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert f"holds {MAX_HELD + 1:,} attempts" in words


async def test_a_refusal_of_what_an_agent_chose_arrives(wire: Wire) -> None:
    agent = await wire.hand()
    await agent.say(hello=hello(pool="\N{SNOWMAN}" * 300_000))
    code, words = await agent.status()
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert words.startswith("hello.pool is out of bounds") and len(words) < 300
