"""The worker that answers without starting anything (`--noop`): it keeps the rules of a session all the same."""

from __future__ import annotations

from agent_program import StartAgent
from scripted_coordinator import LIFE, Coordinator, key
from support.task_specs import idents, spec

from daggyr.v1.task_pb2 import SUCCEEDED, Assignment, AssignmentBatch, TaskTemplate


async def test_noop_answers_without_starting_anything(start_agent: StartAgent, address: str, coordinator: Coordinator) -> None:
    agent = start_agent(address, "--noop")
    session = await coordinator.session()
    keys = [key(n) for n in range(2000)]
    template = TaskTemplate(spec=spec("touch", "started", resources={"cores": 100}))
    await session.send(assign=AssignmentBatch(templates=[template], assignments=[Assignment(key=k, task_id="t") for k in keys]))
    results = await coordinator.results(*keys)
    assert {(result.outcome, result.exit_code) for result in results} == {(SUCCEEDED, 0)}
    assert all(result.HasField("start_time") and result.HasField("stop_time") for result in results)
    assert max(len(batch.updates) for batch in session.batches) == 512
    assert not (agent.home / "started").exists()


async def test_noop_resends_what_was_not_acknowledged(start_agent: StartAgent, address: str, coordinator: Coordinator) -> None:
    start_agent(address, "--noop")
    first = await coordinator.session()
    coordinator.acknowledging = False
    await first.assign((key(), spec("true")))
    await coordinator.result(key())
    coordinator.told.clear()
    first.drop()
    second = await coordinator.session(2)
    assert idents(second.hello.ended) == {(1, 0, 1, LIFE)}
    await coordinator.result(key())
    assert [batch.SerializeToString() for batch in second.batches] == [batch.SerializeToString() for batch in first.batches]
