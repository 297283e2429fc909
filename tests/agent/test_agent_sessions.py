"""The session: hello, refusals, reconnecting, resending, fencing, heartbeats."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import grpc
import pytest
from agent_program import AgentProcess, StartAgent, eventually
from scripted_coordinator import LIFE, Coordinator, key
from support.task_specs import idents, spec

from daggyr.channel import MAX_MESSAGE_BYTES
from daggyr.v1.task_pb2 import SUCCEEDED, Assignment, AssignmentBatch, TaskTemplate
from daggyr_agent.journal import Journal


async def test_hello_says_who_it_is(start_agent: StartAgent, address: str, coordinator: Coordinator) -> None:
    start_agent(address, "--pool", "farm", "--resource", "gpus=3", "--resource", "memory_mb=100", name="größe")
    hello = (await coordinator.session(name="größe")).hello
    assert (hello.protocol_version, hello.pool) == (1, "farm")
    assert dict(hello.resources) == {"cores": 2, "gpus": 3, "memory_mb": 100}
    assert (hello.tracker_id, hello.epoch, hello.first_unacknowledged, hello.draining) == ("", 0, 1, False)
    assert hello.agent_id and hello.incarnation and hello.version
    assert not hello.held and not hello.ended


async def test_id_stays_and_incarnation_changes(
    agent: AgentProcess, start_agent: StartAgent, address: str, coordinator: Coordinator
) -> None:
    first = await coordinator.session()
    agent.end()
    start_agent(address)
    second = await coordinator.session(2)
    assert first.hello.agent_id == second.hello.agent_id
    assert first.hello.incarnation != second.hello.incarnation


async def test_heartbeats_come_in_the_interval_of_the_welcome(
    coordinator: Coordinator, address: str, agent: AgentProcess
) -> None:
    coordinator.heartbeat_interval = 0.05
    session = await coordinator.session()
    await session.assign((key(0), spec("sleep", "600", resources={"cores": 2})), (key(1), spec("true")))
    await coordinator.start_of(key(0))
    await coordinator.until(lambda: session.heartbeats >= 5)
    assert session.heartbeat is not None
    assert not coordinator.of(key(1)).started  # it waits for the cores of the first
    assert session.heartbeat.memory_available_bytes > 1 << 20
    assert 0 <= session.heartbeat.cpu_percent <= 100


async def test_assignment_that_comes_again_changes_nothing(agent: AgentProcess, coordinator: Coordinator) -> None:
    session = await coordinator.session()
    coordinator.acknowledging = False
    task = spec("sh", "-c", "echo run >> ledger; until [ -e go ]; do sleep 0.01; done", resources={"cores": 2})
    waiting = spec("sh", "-c", "echo run >> ledger")
    for _ in range(3):
        await session.assign((key(0), task), (key(1), waiting), (key(1), waiting))
    await coordinator.start_of(key(0))
    await session.assign((key(0), task))
    (agent.home / "go").touch()
    await coordinator.results(key(0), key(1))
    # Ended, but not acknowledged: the coordinator may not know of it.
    await session.assign((key(0), task), (key(1), waiting), (key(2), spec("true")))
    await coordinator.result(key(2))
    assert (agent.home / "ledger").read_text() == "run\nrun\n"
    assert len(coordinator.of(key(0)).results) == len(coordinator.of(key(1)).results) == 1


async def test_agent_goes_on_while_disconnected_and_delivers_with_the_same_numbers(
    agent: AgentProcess, coordinator: Coordinator, address: str
) -> None:
    first = await coordinator.session()
    coordinator.acknowledging = False
    big = spec("sh", "-c", "head -c 700000 /dev/zero; echo the end")
    await first.assign((key(0), big))
    await coordinator.result(key(0))
    before = [batch.SerializeToString() for batch in first.batches]
    await first.assign((key(1), spec("sh", "-c", "until [ -e go ]; do sleep 0.01; done", resources={"cores": 2})))
    await first.assign((key(2), spec("sh", "-c", "touch done; echo done")), (key(3), spec("sleep", "600")))
    await coordinator.start_of(key(1))
    await coordinator.stop()
    (agent.home / "go").touch()
    # Not when it has written the file: it runs until its end is written down.
    await eventually(
        lambda: (1, 2, 1, LIFE) in idents(update.key for update, _ in Journal(agent.state / "journal").results()),
        "the agent worked without its coordinator",
    )
    assert (agent.home / "done").exists()
    told_before, coordinator.told = coordinator.told, {}
    await coordinator.start(address)
    second = await coordinator.session(2)
    assert second.hello.first_unacknowledged == 1
    assert second.hello.incarnation == first.hello.incarnation
    assert (second.hello.tracker_id, second.hello.epoch) == ("tracker-1", 1)
    assert idents(second.hello.held) == {(1, 3, 1, LIFE)}
    await coordinator.start_of(key(3))  # told once more, to a coordinator that may not have heard of it
    assert {(1, 0, 1, LIFE), (1, 2, 1, LIFE)} <= idents(second.hello.ended)
    await coordinator.results(key(0), key(1), key(2))
    assert [batch.SerializeToString() for batch in second.batches][: len(before)] == before
    assert [batch.sequence for batch in second.batches] == list(range(1, len(second.batches) + 1))
    assert coordinator.of(key(0)).output() == told_before[1, 0, 1].output()
    assert coordinator.of(key(2)).output() == b"done\n"
    assert list((agent.state / "output").iterdir())
    await second.acknowledge(second.batches[-1].sequence)
    await second.cancel(key(3))
    await coordinator.result(key(3))


async def test_dropped_stream_is_opened_again_at_once(agent: AgentProcess, coordinator: Coordinator) -> None:
    first = await coordinator.session()
    await first.assign((key(), spec("sh", "-c", "until [ -e go ]; do sleep 0.01; done")))
    await coordinator.start_of(key())
    await coordinator.obeyed(first)  # it knows that its word was taken
    first.drop()
    second = await coordinator.session(2)
    assert idents(second.hello.held) == {(1, 0, 1, LIFE)}
    (agent.home / "go").touch()
    assert (await coordinator.result(key())).outcome == SUCCEEDED
    assert coordinator.of(key()).started == 1


async def test_batches_that_are_durable_are_not_sent_again(agent: AgentProcess, coordinator: Coordinator) -> None:
    first = await coordinator.session()
    coordinator.acknowledging = False
    await first.assign((key(0), spec("echo", "zero")))
    await coordinator.result(key(0))
    durable = first.batches[-1].sequence
    await first.assign((key(1), spec("echo", "one")))
    await coordinator.result(key(1))
    coordinator.next_sequence = durable + 1
    coordinator.told.clear()
    first.drop()
    second = await coordinator.session(2)
    await coordinator.result(key(1))
    assert second.batches[0].sequence == durable + 1
    assert not coordinator.of(key(0)).results


async def test_welcome_ends_what_is_no_longer_the_agents(agent: AgentProcess, coordinator: Coordinator) -> None:
    first = await coordinator.session()
    await first.assign((key(0), spec("sh", "-c", "trap '' TERM; sleep 600; sleep 600")), (key(1), spec("sleep", "600")))
    await first.assign((key(2), spec("touch", "started")))
    await coordinator.start_of(key(0))
    await coordinator.start_of(key(1))
    coordinator.end = [key(0), key(2)]
    first.drop()
    second = await coordinator.session(2)
    await second.assign((key(3), spec("sh", "-c", "ls")))
    await coordinator.result(key(3))
    assert b"started" not in coordinator.of(key(3)).output()
    await second.cancel(key(1))
    await coordinator.result(key(1))
    assert not agent.tasks()
    assert not coordinator.of(key(0)).results and not coordinator.of(key(2)).results


async def test_attempts_of_another_tracker_are_ended_and_never_told_of(agent: AgentProcess, coordinator: Coordinator) -> None:
    first = await coordinator.session()
    coordinator.acknowledging = False
    await first.assign((key(0), spec("echo", "undelivered")), (key(1), spec("sh", "-c", "trap '' TERM; sleep 600; sleep 600")))
    await coordinator.result(key(0))
    await coordinator.start_of(key(1))
    coordinator.told.clear()
    coordinator.tracker_id, coordinator.epoch = "tracker-2", 1
    first.drop()
    second = await coordinator.session(2)
    await second.assign((key(1, run_id=2), spec("echo", "new")))
    await coordinator.result(key(1, run_id=2))
    await eventually(lambda: not agent.tasks(), "the other tracker's attempts were ended")
    assert set(coordinator.told) == {(2, 1, 1)}
    # The numbers go on where the hello said, so that this tracker sees no gap.
    assert second.batches[0].sequence == second.hello.first_unacknowledged

    def contents() -> set[bytes]:
        found = set()
        for entry in (agent.state / "output").iterdir():
            with suppress(FileNotFoundError):  # removed meanwhile
                found.add(entry.read_bytes())
        return found - {b""}

    await eventually(lambda: contents() == {b"new\n"}, "the other tracker's output was removed")


async def test_another_trackers_attempts_may_have_the_same_numbers(agent: AgentProcess, coordinator: Coordinator) -> None:
    first = await coordinator.session()
    coordinator.acknowledging = False
    await first.assign((key(0), spec("echo", "the first's")), (key(1), spec("sleep", "600")), (key(2), spec("sleep", "600")))
    await first.assign((key(3), spec("touch", "the-firsts")))
    await coordinator.result(key(0))
    await coordinator.start_of(key(2))
    coordinator.told, coordinator.tracker_id = {}, "tracker-2"
    keys = [key(number) for number in range(4)]
    coordinator.assigned_at_once = [(key, spec("echo", f"{key.task_number} of the second")) for key in keys]
    first.drop()
    assert {result.outcome for result in await coordinator.results(*keys)} == {SUCCEEDED}
    assert [coordinator.of(key).output() for key in keys] == [b"%d of the second\n" % number for number in range(4)]
    assert not (agent.home / "the-firsts").exists()


async def test_older_coordinator_of_the_same_tracker_is_left_alone(agent: AgentProcess, coordinator: Coordinator) -> None:
    coordinator.epoch = 5
    first = await coordinator.session()
    await first.assign((key(), spec("sh", "-c", "until [ -e go ]; do sleep 0.01; done")))
    await coordinator.start_of(key())
    coordinator.epoch = 4
    first.drop()
    older = await coordinator.session(2)
    await older.ended.wait()
    assert not older.batches
    await eventually(lambda: "older (epoch 4)" in agent.log, "the agent said why it left")
    coordinator.epoch = 6
    await coordinator.until(
        lambda: any(session.hello.epoch == 5 and not session.ended.is_set() for session in coordinator.sessions[2:])
    )
    (agent.home / "go").touch()
    assert (await coordinator.result(key())).outcome == SUCCEEDED


async def test_newer_coordinator_is_told_once_of_what_runs(agent: AgentProcess, coordinator: Coordinator) -> None:
    """Whether the one before had heard of the start, or never acknowledged it."""
    first = await coordinator.session()
    await first.assign((key(0), spec("sleep", "600")))
    await coordinator.start_of(key(0))
    coordinator.acknowledging = False
    await first.assign((key(1), spec("sleep", "600")))
    await coordinator.start_of(key(1))
    for epoch, told in ((1, {(1, 1, 1, LIFE): 1}), (2, {(1, 0, 1, LIFE): 1, (1, 1, 1, LIFE): 1})):
        coordinator.told, coordinator.epoch = {}, epoch
        coordinator.sessions[-1].drop()
        session = await coordinator.session(len(coordinator.sessions) + 1)
        await coordinator.until(lambda told=told: told.keys() <= coordinator.told.keys())  # type: ignore[misc]
        await session.assign((key(2, attempt=epoch), spec("true", resources={"cores": 3})))
        await coordinator.result(key(2, attempt=epoch))
        assert {ident: one.started for ident, one in coordinator.told.items() if one.started} == told


REFUSALS = [
    (grpc.StatusCode.UNAUTHENTICATED, "this token opens nothing"),
    (grpc.StatusCode.PERMISSION_DENIED, "a client's token"),
    (grpc.StatusCode.FAILED_PRECONDITION, "protocol version 2 is spoken here"),
    (grpc.StatusCode.INVALID_ARGUMENT, "a hello without cores"),
    (grpc.StatusCode.NOT_FOUND, "no such pool: farm"),
    (grpc.StatusCode.ALREADY_EXISTS, "another agent is called so"),
]


@pytest.mark.parametrize("refusal", REFUSALS, ids=lambda refusal: refusal[0].name)
async def test_refusal_at_the_first_start_is_one_line_and_code_2(
    agent: AgentProcess, coordinator: Coordinator, refusal: tuple[grpc.StatusCode, str]
) -> None:
    coordinator.refusal = refusal
    assert await agent.exit_code() == 2
    [line] = [line for line in agent.log.splitlines() if " INFO " not in line]
    assert line.startswith("daggyr-agent: ") and refusal[1] in line


@pytest.mark.parametrize("refusal", REFUSALS[:1] + REFUSALS[-1:], ids=lambda refusal: refusal[0].name)
async def test_refusal_after_a_welcome_is_waited_out(
    agent: AgentProcess, coordinator: Coordinator, refusal: tuple[grpc.StatusCode, str]
) -> None:
    first = await coordinator.session()
    coordinator.refusal = refusal
    first.drop()
    await coordinator.until(lambda: len(coordinator.refused) >= 3)
    coordinator.refusal = None
    await coordinator.session(2)
    assert agent.log.count(refusal[1]) == 1


async def test_agent_leaves_for_its_newer_self(agent: AgentProcess, coordinator: Coordinator) -> None:
    first = await coordinator.session()
    await first.assign((key(), spec("sleep", "600")))
    await coordinator.start_of(key())
    coordinator.refusal = (grpc.StatusCode.ABORTED, "a newer session of this agent")
    first.drop()
    assert await agent.exit_code() == 2
    assert "a newer session of this agent" in agent.log
    assert not agent.tasks()


async def test_coordinator_that_is_not_there_yet_is_waited_for(
    start_agent: StartAgent, coordinator: Coordinator, folder: Path
) -> None:
    agent = start_agent(f"unix:{folder}/later.sock")
    await eventually(lambda: "waiting for a coordinator" in agent.log, "the agent said that it waits")
    await coordinator.start(f"unix:{folder}/later.sock")
    await coordinator.session()
    await eventually(lambda: "connected to" in agent.log, "the agent said that it is connected")
    assert agent.log.count("waiting for") == 1


async def test_what_is_no_message_ends_the_session_and_not_the_agent(agent: AgentProcess, coordinator: Coordinator) -> None:
    first = await coordinator.session()
    await first.send_bytes(b"\xff\xff\xff\xff this is no protobuf")
    second = await coordinator.session(2)
    await second.assign((key(), spec("true")))
    assert (await coordinator.result(key())).outcome == SUCCEEDED
    assert "no message of this protocol" in agent.log
    assert "Traceback" not in agent.log


async def test_a_hello_never_names_more_than_a_message_holds(
    start_agent: StartAgent, address: str, coordinator: Coordinator
) -> None:
    """What it leaves out is sent again, and changes nothing: results that were kept are told all the same."""
    start_agent(address, "--noop")
    first = await coordinator.session()
    coordinator.acknowledging = False
    template = TaskTemplate(spec=spec("true"))
    for start in range(0, 180_000, 20_000):
        keys = [key(2**32 - 1 - number, run_id=2**64 - 1, attempt=2**32 - 1) for number in range(start, start + 20_000)]
        await first.send(assign=AssignmentBatch(templates=[template], assignments=[Assignment(key=each) for each in keys]))
    await coordinator.obeyed(first)
    first.drop()
    second = await coordinator.session(2)
    assert len(second.hello.ended) == 120_000
    assert second.hello.ByteSize() < MAX_MESSAGE_BYTES
